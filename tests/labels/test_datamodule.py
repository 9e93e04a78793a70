from typing import Any

import pytest
import torch

from ppf.errors import PPFError
from ppf.labels.datamodule import LabelsDataModule
from ppf.labels.table import Labels
from ppf.space import Site, Space, uniform

SPACE = Space(tuple(Site(layer, "mlp", 20, 1, 10) for layer in range(4)))
CONFIG: dict[str, Any] = {
    "shares": {"train": 0.8, "validation": 0.1, "test": 0.1},
    "strata": 4,
    "members": 3,
    "batch_size": 1000,
    "steps": 2,
    "seed": 0,
}


def labelled(count: int) -> Labels:
    kept = uniform(SPACE, torch.linspace(0, 0.6, count))
    kept = torch.unique(kept, dim=0)
    return Labels(kept, torch.linspace(5, 3, len(kept)), ["uniform"] * len(kept))


def module(labels: Labels, **changes: Any) -> LabelsDataModule:
    return LabelsDataModule(labels, SPACE, **CONFIG | changes)


def test_parts_have_their_shares_in_every_stratum() -> None:
    labels = labelled(40)
    data = module(labels)
    sizes = {name: len(rows.nll) for name, rows in data.parts.items()}
    assert sum(sizes.values()) == len(labels)
    assert sizes["validation"] == pytest.approx(len(labels) / 10, abs=1)
    spread = data.parts["test"].ratio
    assert spread.min() < 0.2
    assert spread.max() > 0.4


def test_equal_policies_stay_together() -> None:
    labels = labelled(40)
    twice = Labels(labels.kept.repeat(2, 1), labels.nll.repeat(2), labels.source * 2)
    parts = [set(map(tuple, rows.kept.tolist())) for rows in module(twice).parts.values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(labels)


def test_rows_without_a_finite_label_go_and_are_counted(
    capsys: pytest.CaptureFixture[str],
) -> None:
    labels = labelled(40)
    nll = labels.nll.clone()
    nll[3], nll[4] = torch.inf, torch.nan
    parts = module(Labels(labels.kept, nll, labels.source)).parts
    assert all(rows.nll.isfinite().all() for rows in parts.values())
    assert sum(len(rows.nll) for rows in parts.values()) == len(labels) - 2
    assert f"Leaving out 2 of {len(labels)} labels" in capsys.readouterr().out


def test_too_few_labels_are_refused() -> None:
    with pytest.raises(PPFError, match="labels.count"):
        module(labelled(5))
    with pytest.raises(PPFError, match="0 finite labels"):
        module(Labels(SPACE.dense[None], torch.tensor([torch.nan]), ["dense"]))


def test_bootstrap_weighs_training_rows_only() -> None:
    data = module(labelled(40))
    assert torch.allclose(data.parts["train"].weights.mean(0), torch.ones(3))
    assert data.parts["train"].weights.std(0).min() > 0.5
    assert (data.parts["test"].weights == 1).all()
    assert (module(labelled(40), members=1).parts["train"].weights == 1).all()


def test_seed_decides_the_split() -> None:
    first, same, other = (module(labelled(40), seed=seed).parts["test"].kept for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_small_batches_cover_every_row_in_turn() -> None:
    data = module(labelled(40), batch_size=8, steps=4)
    batches = list(data.train_dataloader())
    assert len(batches) == len(data.train_dataloader()) == 4
    rows = torch.cat([batch.kept for batch in batches])
    assert len(torch.unique(rows, dim=0)) == len(rows) == len(data.parts["train"].nll)
