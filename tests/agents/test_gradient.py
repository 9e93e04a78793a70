"""Fractional policies between the descents' steps."""

import pytest
import torch

from ppf.agents import Run
from ppf.agents.gradient import within_budget
from tests.agents.synthetic import Log, agent, layered, one_process, quadratic


@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.95])
def test_fractional_policies_meet_the_budget_inside_the_trust_region(ratio: float) -> None:
    objective = quadratic(ratio=ratio)
    space = objective.space
    deviation = 3 * torch.randn(64, len(space), generator=torch.Generator().manual_seed(0))
    wanted = within_budget(objective, deviation)
    over = (space.units - wanted) @ space.cost.float() / (space.units * space.cost).sum() - ratio
    assert over.abs().max() < 0.001
    lower, _, upper = objective.region(objective.ratios(1))
    assert (wanted >= lower).all() and (wanted <= upper).all()


@pytest.mark.parametrize("ratio", [0.3, 0.5])
def test_no_descent_is_stuck_at_a_bound(ratio: float) -> None:
    log, objective = Log(), quadratic(layered(6), ratio, trust_region=1.0)
    learner = agent("gradient", descents=8, iterations=121, polish=None)
    learner.search(objective, Run(one_process(), log, 0))
    last = log[-1][1]
    assert last["predicted_mean"] - last["predicted_best"] < 0.003
