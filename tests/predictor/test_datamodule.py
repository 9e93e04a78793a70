from typing import Any

import pytest
import torch

from ppf.errors import PPFError
from ppf.labels.table import ACQUIRED, PROPOSED, Labels
from ppf.predictor.datamodule import LabelsDataModule
from ppf.space import Site, Space, uniform

SPACE = Space(tuple(Site(layer, "mlp", 20, 1, 10) for layer in range(4)))
CONFIG: dict[str, Any] = {
    "test": 0.2,
    "strata": 4,
    "members": 3,
    "proposals": 1.0,
    "low_loss": 0.0,
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
    assert sizes["test"] == pytest.approx(len(labels) / 5, abs=1)
    spread = data.parts["test"].ratio
    assert spread.min() < 0.2
    assert spread.max() > 0.4


def test_equal_policies_stay_together() -> None:
    labels = labelled(40)
    twice = Labels(labels.kept.repeat(2, 1), labels.nll.repeat(2), labels.source * 2)
    parts = [set(map(tuple, rows.kept.tolist())) for rows in module(twice).parts.values()]
    assert sum(map(len, parts)) == len(set.union(*parts)) == len(labels)
    train = module(twice).parts["train"]
    unseen: dict[tuple[int, ...], list[bool]] = {}
    for row, weights in zip(train.kept.tolist(), train.weights.tolist(), strict=True):
        assert unseen.setdefault(tuple(row), [w == 0 for w in weights]) == [w == 0 for w in weights]


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
        module(labelled(3))
    with pytest.raises(PPFError, match="0 finite labels"):
        module(Labels(SPACE.dense[None], torch.tensor([torch.nan]), ["dense"]))


def test_every_training_row_is_unseen_by_one_member() -> None:
    data = module(labelled(40))
    unseen = data.parts["train"].weights == 0
    assert (unseen.sum(1) == 1).all()
    assert unseen.sum(0).max() - unseen.sum(0).min() <= 1
    assert torch.allclose(data.parts["train"].weights.mean(0), torch.ones(3))
    assert (data.parts["test"].weights > 0).all()


def test_one_member_is_refused() -> None:
    with pytest.raises(PPFError, match="predictor.members=1 .* at least 2"):
        module(labelled(40), members=1)


def test_proposals_are_trained_on_and_count_more() -> None:
    labels = labelled(40)
    source = [PROPOSED if i % 3 == 0 else "uniform" for i in range(len(labels))]
    labels = Labels(labels.kept, labels.nll, source)
    data = module(labels, proposals=4.0)
    weight = dict(
        zip(
            map(tuple, data.parts["train"].kept.tolist()),
            data.parts["train"].weights.amax(1).tolist(),
            strict=True,
        )
    )
    proposed = [weight[tuple(row)] for row in labels.kept[labels.proposed].tolist()]
    assert min(proposed) > 2 * min(weight.values())


def test_what_a_predictor_asked_for_is_trained_on_and_counts_as_drawn() -> None:
    labels = labelled(40)
    source = [ACQUIRED if i % 2 == 0 else "uniform" for i in range(len(labels))]
    labels = Labels(labels.kept, labels.nll, source)
    data = module(labels, proposals=4.0, low_loss=0.0)
    asked = set(map(tuple, labels.kept[labels.acquired].tolist()))
    assert not asked & set(map(tuple, data.parts["test"].kept.tolist()))
    assert len(data.parts["train"].weights.amax(1).unique()) == 1


def test_low_losses_count_more_within_their_bin() -> None:
    kept = uniform(SPACE, torch.linspace(0, 0.6, 40)).unique(dim=0)
    nll = 5 - kept.sum(1) / 40 + torch.arange(len(kept)) % 2
    train = module(Labels(kept, nll, ["made up"] * len(kept)), strata=1, low_loss=2.0).parts[
        "train"
    ]
    weights = train.weights.amax(1)
    assert weights[train.nll.argmin()] > 2 * weights[train.nll.argmax()]


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
