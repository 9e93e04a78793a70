import pytest
import torch

from ppf.agents import Candidates
from tests.agents.synthetic import quadratic


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


def test_merge_orders_and_removes_repeats() -> None:
    first = Candidates(torch.tensor([[1, 2], [3, 4]]), torch.tensor([2.0, 1.0]))
    second = Candidates(torch.tensor([[3, 4], [5, 6], [7, 8]]), torch.tensor([1.5, 0.5, torch.nan]))
    merged = Candidates.merge(first, second)
    assert merged.kept.tolist() == [[5, 6], [3, 4], [1, 2], [7, 8]]
    assert merged.cost.tolist() == [0.5, 1.0, 2.0, torch.inf]
    assert merged.best(2).kept.tolist() == [[5, 6], [3, 4]]
