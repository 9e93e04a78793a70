import pytest
import torch

from ppf.agents import Candidates
from tests.agents.synthetic import layered, quadratic

RATIOS = torch.rand(500, generator=torch.Generator().manual_seed(1)).double() * 0.6 + 0.05


def deviations(sites: int) -> torch.Tensor:
    return 4 * torch.rand(len(RATIOS), sites, generator=torch.Generator().manual_seed(2)) - 2


def test_policies_meet_the_budget_inside_the_trust_region() -> None:
    objective = quadratic()
    space = objective.space
    kept = objective.policy(deviations(len(space)), RATIOS)
    excess = space.removed(kept) - RATIOS * space.total
    assert (excess > -1e-5).all() and (excess < space.params.min()).all()
    lower, _, upper = objective.region(RATIOS)
    assert (kept >= lower).all() and (kept <= upper).all()


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5])
def test_attention_can_stay_whole(ratio: float) -> None:
    objective = quadratic(ratio=ratio)
    space = objective.space
    attention = torch.tensor([site.kind == "attention" for site in space.sites])
    deviation = torch.where(attention, 1.0, -0.7)[None]
    kept = objective.policy(deviation, objective.ratios(1))
    assert (kept[0, attention] == space.units[attention]).all()
    assert (objective.starts()[:, attention] == space.units[attention]).all(1).any()


def test_a_narrow_trust_region_still_moves_one_unit() -> None:
    objective = quadratic(trust_region=0.0)
    lower, share, upper = objective.region(objective.ratios(1))
    assert (upper - share >= 1 - 1e-9).logical_or(upper == objective.space.units).all()
    assert (upper - share < 2).all() and (share - lower < 2).all()


def test_the_spread_penalty_adds_to_the_cost() -> None:
    space, kept = layered(), layered().dense[None]
    certain, wary = quadratic(space, spread_penalty=0.0), quadratic(space, spread_penalty=3.0)
    assert (wary.cost(kept) - certain.cost(kept)).item() == pytest.approx(0.03, abs=1e-5)


def test_merge_orders_and_removes_repeats() -> None:
    first = Candidates(torch.tensor([[1, 2], [3, 4]]), torch.tensor([2.0, 1.0]))
    second = Candidates(torch.tensor([[3, 4], [5, 6], [7, 8]]), torch.tensor([1.5, 0.5, torch.nan]))
    merged = Candidates.merge(first, second)
    assert merged.kept.tolist() == [[5, 6], [3, 4], [1, 2], [7, 8]]
    assert merged.cost.tolist() == [0.5, 1.0, 2.0, torch.inf]
    assert merged.best(2).kept.tolist() == [[5, 6], [3, 4]]
