"""Fractional policies between the descents' steps."""

import torch

from ppf.agents.gradient import within_budget
from tests.agents.synthetic import quadratic


def test_fractional_policies_meet_the_budget_inside_the_trust_region() -> None:
    objective = quadratic()
    space = objective.space
    deviation = 3 * torch.randn(64, len(space), generator=torch.Generator().manual_seed(0))
    wanted = within_budget(objective, deviation)
    over = (space.units - wanted) @ space.cost.float() / (space.units * space.cost).sum() - 0.3
    assert over.abs().max() < 0.01
    lower, _, upper = objective.region(objective.ratios(1))
    assert (wanted >= lower - 0.5).all() and (wanted <= upper + 0.5).all()
