"""The agent that a dynamic search leaves."""

import pytest
import torch

from ppf.space import uniform
from ppf.stages.dynamic import _agent
from tests.agents.synthetic import quadratic


def test_its_intervals_are_widened_by_the_errors_of_measured_experts() -> None:
    objective, knots = quadratic(), torch.tensor([0.1, 0.3, 0.5], dtype=torch.double)
    experts = uniform(objective.space, knots)
    own, wide = (
        _agent(objective, knots, experts, factor, {}).predicted(0.3) for factor in (1.0, 2.0)
    )
    assert wide[0] == own[0]
    assert wide[1] == pytest.approx(2 * own[1])
