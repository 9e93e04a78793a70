import pytest
import torch
from torch import Tensor

from ppf.agents import Candidates
from ppf.search import Verification, agrees, with_neighbours
from tests.agents.synthetic import quadratic


def found(count: int = 3) -> Candidates:
    objective = quadratic()
    deviation = torch.randn(count, len(objective.space), generator=torch.Generator().manual_seed(0))
    return objective.candidates(objective.policy(deviation, objective.ratios(count)))


@pytest.mark.parametrize(
    ("each", "room", "expected"), [(2, 100, 9), (2, 5, 5), (1, 2, 2), (0, 9, 3)]
)
def test_neighbours_fill_the_room_behind_the_proposals(each: int, room: int, expected: int) -> None:
    objective, proposals = quadratic(), found()
    proposed = with_neighbours(objective, proposals, each, room, seed=0)
    assert len(proposed) == len(proposed.kept.unique(dim=0))
    assert expected - 1 <= len(proposed) <= expected  # an exchange may change nothing
    first = min(room, len(proposals))
    assert torch.equal(proposed.kept[:first], proposals.kept[:first])
    assert torch.equal(proposed.cost, objective.cost(proposed.kept))
    assert (objective.space.ratio(proposed.kept) >= objective.ratio).all()


def test_neighbours_are_near() -> None:
    objective, proposals = quadratic(), found()
    near = with_neighbours(objective, proposals, 3, 100, seed=0).kept[len(proposals) :]
    moved = (near[:, None] != proposals.kept).sum(2).amin(1)
    assert moved.median() <= 4


def verified(measured: Tensor) -> Verification:
    kept = torch.arange(len(measured))[:, None]
    names = ("uniform", *["candidate"] * (len(measured) - 1))
    return Verification(
        names, kept, torch.full_like(measured, 3.5), torch.full_like(measured, 0.1), measured
    )


@pytest.mark.parametrize(
    ("measured", "expected"),
    [
        ([9.0, 3.49, 3.6, 3.55], True),  # uniform does not count
        ([3.6, 3.45, 3.6, 3.55], False),  # the best one is off by more than the tolerance
        ([3.6, 3.49, 3.8, 3.9], False),  # intervals do not hold
        ([3.6, 3.49, torch.inf, torch.nan], False),
    ],
)
def test_agreement_stops_the_rounds(measured: list[float], expected: bool) -> None:
    assert agrees(verified(torch.tensor(measured)), share=0.6, tolerance=0.02) is expected
