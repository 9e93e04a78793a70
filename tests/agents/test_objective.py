import pytest
import torch

from ppf.agents import Candidates
from ppf.agents.base import predictions
from ppf.space import uniform
from tests.agents.synthetic import layered, quadratic

RATIOS = torch.rand(500, generator=torch.Generator().manual_seed(1)).double() * 0.6 + 0.05


def deviations(sites: int) -> torch.Tensor:
    return 4 * torch.rand(len(RATIOS), sites, generator=torch.Generator().manual_seed(2)) - 2


def test_no_deviation_is_uniform() -> None:
    objective = quadratic()
    still = torch.zeros(1, len(objective.space))
    assert (objective.policy(still, objective.ratios(1)) == objective.uniform()).all()


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


@pytest.mark.parametrize("ratio", [0.3, 0.85])
def test_the_widest_trust_region_is_the_whole_space(ratio: float) -> None:
    objective = quadratic(ratio=ratio, trust_region=1.0)
    lower, _, upper = objective.region(objective.ratios(1))
    assert (lower == 0).all() and (upper == objective.space.units).all()


def test_the_spread_penalty_adds_to_the_cost() -> None:
    space, kept = layered(), layered().dense[None]
    certain, wary = quadratic(space, spread_penalty=0.0), quadratic(space, spread_penalty=3.0)
    assert (wary.cost(kept) - certain.cost(kept)).item() == pytest.approx(0.03, abs=1e-5)


def test_metrics_of_a_step_are_about_the_drawn_policies() -> None:
    objective = quadratic(ratio=0.3)
    ratio = torch.tensor([0.1, 0.5]).double()
    best, drawn = objective.candidates(objective.uniform()), uniform(objective.space, ratio)
    found = predictions(objective, best, drawn, ratio)
    mean = objective.predictor.predict(drawn).mean
    assert found["violation"] == 0
    assert found["perplexity_0_15"] == mean[0].exp() and found["perplexity_45_60"] == mean[1].exp()
    assert found["predicted_best"] == objective.predictor.predict(objective.uniform()).mean
    missed = predictions(objective, best, drawn.flip(0), ratio)["violation"]
    assert float(missed) == pytest.approx(0.4, abs=0.01)


def test_a_policy_is_predicted_once() -> None:
    objective, predicted = quadratic(), list[int]()
    predict = objective.predictor.predict
    objective.predictor.predict = lambda kept: predicted.append(len(kept)) or predict(kept)
    objective.candidates(objective.uniform().repeat(3, 1))
    assert predicted == [1]


def test_merge_orders_and_removes_repeats() -> None:
    first = Candidates(torch.tensor([[1, 2], [3, 4]]), torch.tensor([2.0, 1.0]))
    second = Candidates(torch.tensor([[3, 4], [5, 6], [7, 8]]), torch.tensor([1.5, 0.5, torch.nan]))
    merged = Candidates.merge(first, second)
    assert merged.kept.tolist() == [[5, 6], [3, 4], [1, 2], [7, 8]]
    assert merged.cost.tolist() == [0.5, 1.0, 2.0, torch.inf]
    assert merged.best(2).kept.tolist() == [[5, 6], [3, 4]]
