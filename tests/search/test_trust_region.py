from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ppf.agents import Candidates
from ppf.search import TrustRegion, Verification, with_neighbours
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
    proposed = with_neighbours(objective, proposals, objective.baselines(), each, room, seed=0)
    assert len(proposed) == len(proposed.kept.unique(dim=0))
    assert expected - 1 <= len(proposed) <= expected  # an exchange may change nothing
    first = min(room, len(proposals))
    assert torch.equal(proposed.kept[:first], proposals.kept[:first])
    assert torch.equal(proposed.cost, objective.cost(proposed.kept))
    assert (objective.space.ratio(proposed.kept) >= objective.ratio).all()


def test_neighbours_are_near() -> None:
    objective, proposals = quadratic(), found()
    known = objective.baselines()
    near = with_neighbours(objective, proposals, known, 3, 100, seed=0).kept[len(proposals) :]
    moved = (near[:, None] != proposals.kept).sum(2).amin(1)
    assert moved.median() <= 4


def test_measured_policies_are_no_neighbours() -> None:
    objective, proposals = quadratic(), found()
    given = objective, proposals
    near = with_neighbours(*given, proposals.kept[:0], 3, 100, seed=0).kept[len(proposals) :]
    again = with_neighbours(*given, near[1:], 3, 100, seed=0).kept[len(proposals) :]
    assert torch.equal(again, near[:1])


def verified(measured: Tensor) -> Verification:
    kept = torch.arange(len(measured))[:, None]
    names = (("uniform",), *[("candidate",)] * (len(measured) - 1))
    return Verification(
        names, kept, torch.full_like(measured, 3.5), torch.full_like(measured, 0.1), measured
    )


def region() -> TrustRegion:
    return TrustRegion(0.4, widen=2, agreement=0.6, tolerance=0.02, gain=0.01)


def test_a_round_without_a_new_policy_widens_the_region_and_does_not_end_the_search() -> None:
    searched, nothing = region(), verified(torch.tensor([3.5]))
    over = [(searched.update(nothing, 3.5), searched.radius) for _ in range(3)]
    assert over == [(False, 0.8), (False, 1.0), (False, 1.0)]


def test_what_was_gained_before_a_round_without_a_new_policy_counts_no_more() -> None:
    searched = replace(region(), radius=0.2, settled=3.6)
    searched.update(verified(torch.tensor([3.5])), least=3.49)  # it widens the region
    assert searched.update(verified(torch.tensor([3.6, 3.49, 3.6, 3.55])), least=3.49)


@pytest.mark.parametrize(
    ("measured", "radius"),
    [
        ([9.0, 3.49, 3.6, 3.55], 0.8),  # uniform does not count
        ([3.6, 3.45, 3.6, 3.55], 0.8),
        ([3.6, 3.49, 3.8, 3.9], 0.4),  # intervals do not hold
        ([3.6, 3.49, torch.inf, torch.nan], 0.4),
    ],
)
def test_the_region_widens_if_intervals_hold(measured: list[float], radius: float) -> None:
    wide = region()
    assert not wide.update(verified(torch.tensor(measured)), least=3.4)
    assert wide.radius == radius


def test_a_region_that_must_not_grow_is_not_said_to_grow(
    capsys: pytest.CaptureFixture[str],
) -> None:
    fixed = replace(region(), widen=1)
    fixed.grow()
    assert fixed.radius == 0.4 and not capsys.readouterr().out


def test_predictions_without_an_interval_count_as_held() -> None:
    wide, measured = region(), torch.tensor([3.6, 4.5, 4.6, 4.7])
    sure = replace(verified(measured), std=torch.zeros(4))
    assert not wide.update(sure, least=3.6)
    assert wide.radius == 0.8


def test_a_search_ends_if_widening_brings_no_gain() -> None:
    wide, right = region(), verified(torch.tensor([3.6, 3.49, 3.6, 3.55]))
    assert not wide.update(right, least=3.49)
    assert not wide.update(right, least=3.45)  # better, so it widens again
    assert wide.radius == 1
    off = verified(torch.tensor([3.6, 3.44, 3.6, 3.55]))  # by more than the tolerance
    assert not wide.update(off, least=3.44)
    rule = replace(off, measured=off.measured.clone().index_fill_(0, torch.tensor(0), 3.4))
    rule.mean[0] = 3.4  # the best of all is no proposal, so its exact prediction says nothing
    assert not wide.update(rule, least=3.44)
    assert wide.update(right, least=3.44)
