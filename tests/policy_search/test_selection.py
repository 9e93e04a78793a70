"""The best policies of a search on windows that it did not use."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ppf.policy_search.selection import Mean, Selection, select, selection_part
from ppf.space import uniform
from tests.policy_search.test_intervals import verified
from tests.searched import write_search

USED = torch.tensor([[3.0, 3.4], [2.8, 3.0], [2.9, 3.1]])
NEW = torch.tensor([[4.0, 4.2, 3.8], [4.0, 4.1, 3.9], [3.8, 4.0, 3.6]])


def test_the_policy_with_the_least_loss_on_both_parts_is_the_best() -> None:
    rows = [0, 5, 2]
    assert Selection(rows, rows, USED, NEW).best == 2  # 5 was lucky on the labelling part
    spoilt = NEW * torch.tensor([[1.0], [1.0], [torch.nan]])
    assert Selection(rows, rows, USED, spoilt).best == 5


def test_differences_are_those_of_paired_windows() -> None:
    found = Selection([0, 5, 2], [0, 5, 2], USED, NEW)
    gain = found.against_uniform(2)
    assert gain.nll == pytest.approx(-0.2)
    assert gain.std_error == pytest.approx(0, abs=1e-6)
    assert found.against_uniform(0) == Mean(0, 0)


def test_uniform_and_the_finalists_are_measured_once() -> None:
    asked = []

    def windows(kept: Tensor) -> tuple[Tensor, Tensor]:
        asked.append(kept[:, 0].tolist())
        return kept.float(), kept.float()

    found = verified(torch.tensor([0.5, 0.6, torch.nan, 0.4, 0.7]))
    assert select(found, torch.ones(5) > 0, windows).rows == [0, 3, 1]
    assert asked == [[0, 3, 1]]


def test_further_policies_are_measured_as_long_as_one_could_be_better() -> None:
    lost = torch.tensor([4.0, 3.0, 3.01, 3.02, 3.03, 3.04, 3.045])
    behind = torch.tensor([0.08, 0.9, 0.9, 0.9, 0.9, 0.1, 0.1])  # in a window that no label reads
    chosen = select(
        verified(lost - 3), torch.ones(7) > 0, lambda kept: (lost[kept], lost[kept] + behind[kept])
    )
    assert chosen.rows == [0, 1, 2, 3, 4, 5]  # with 3.04 known, 3.045 cannot be better by 1 %
    assert chosen.best == 5


def test_only_eligible_policies_are_finalists() -> None:
    found = verified(torch.tensor([0.0, 0.1, 0.4, 0.3]))
    found = replace(found, names=(("uniform",), ("rule",), *found.names[2:]))
    eligible = torch.tensor([False, False, True, True])
    chosen = select(found, eligible, lambda kept: (found.measured[kept], found.measured[kept]))
    assert (chosen.rows, chosen.finalists, chosen.best) == ([0, 3, 2], [3, 2], 3)


def test_the_selection_part_has_windows_that_no_label_reads(tmp_path: Path, cache: str) -> None:
    _, context = write_search(tmp_path, cache)
    labelling = context.labelling
    kept = uniform(context.model.space, torch.tensor([0.3, 0.4]))
    measure = selection_part(labelling, 4)
    assert measure
    before = labelling.token_passes
    used, new = measure(kept)
    assert new.shape == (2, 4)
    for losses, policy in zip(used, kept, strict=True):
        with context.model.at(policy.tolist()):
            assert float(losses.mean()) == pytest.approx(labelling.present_nll(), rel=1e-5)
    read = set(map(tuple, labelling.windows.tolist()))
    assert not read & set(map(tuple, labelling.others.tolist()))
    once = labelling.token_passes - before
    measure(kept)  # as in a chain, at another ratio
    assert labelling.token_passes == before + 2 * once > before
    assert selection_part(labelling, 0) is None
