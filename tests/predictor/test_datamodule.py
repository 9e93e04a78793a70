from typing import Any

import pytest
import torch

from ppf.errors import PPFError
from ppf.labels.table import PROPOSED, Labels
from ppf.predictor.datamodule import LabelsDataModule
from ppf.space import Site, Space, uniform

SPACE = Space(tuple(Site(layer, "mlp", 20, 1, 10) for layer in range(4)))
CONFIG: dict[str, Any] = {"members": 3, "steps": 2, "seed": 0}


def labelled(count: int) -> Labels:
    kept = uniform(SPACE, torch.linspace(0, 0.6, count))
    kept = torch.unique(kept, dim=0)
    return Labels(kept, torch.linspace(5, 3, len(kept)), ["uniform"] * len(kept))


def module(labels: Labels, **changes: Any) -> LabelsDataModule:
    return LabelsDataModule(labels, SPACE, **CONFIG | changes)


def folds(data: LabelsDataModule) -> torch.Tensor:
    return data.rows.weights.argmin(1)


def test_every_fold_has_low_and_high_ratios() -> None:
    data = module(labelled(40))
    for fold in range(3):
        ratio = data.rows.ratio[folds(data) == fold]
        assert ratio.min() < 0.2 and ratio.max() > 0.4


def test_a_family_is_in_one_fold() -> None:
    generator = torch.Generator().manual_seed(0)
    kept = torch.randint(0, 21, (48, 4), generator=generator)
    kept[:, 0] = torch.arange(48) // 4  # the first of four layers
    data = module(Labels(kept, torch.linspace(5, 3, 48), ["made up"] * 48))
    rows = dict(zip(map(tuple, data.rows.kept.tolist()), folds(data).tolist(), strict=True))
    by_group = [{rows[tuple(row)] for row in kept[4 * i : 4 * i + 4].tolist()} for i in range(12)]
    assert all(len(found) == 1 for found in by_group)
    assert folds(data).bincount().tolist() == [16, 16, 16]


def test_rows_without_a_finite_label_go_and_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    labels = labelled(40)
    nll = labels.nll.clone()
    nll[3], nll[4] = torch.inf, torch.nan
    rows = module(Labels(labels.kept, nll, labels.source)).rows
    assert rows.nll.isfinite().all()
    assert len(rows.nll) == len(labels) - 2
    assert f"2 of {len(labels)} labels are not finite" in capsys.readouterr().out


def test_too_few_labels_are_refused() -> None:
    with pytest.raises(PPFError, match="labels.count"):
        module(labelled(3), members=8)
    with pytest.raises(PPFError, match="0 labels of 0 groups"):
        module(Labels(SPACE.dense[None], torch.tensor([torch.nan]), ["dense"]))


def test_proposals_are_trained_on_and_count_more() -> None:
    labels = labelled(40)
    source = [PROPOSED if i % 3 == 0 else "uniform" for i in range(len(labels))]
    labels = Labels(labels.kept, labels.nll, source)
    data = module(labels)
    kept, weights = data.rows.kept.tolist(), data.rows.weights.amax(1).tolist()
    weight = dict(zip(map(tuple, kept), weights, strict=True))
    proposed = [weight[tuple(row)] for row in labels.kept[labels.proposed].tolist()]
    assert min(proposed) > 1.5 * min(weight.values())
