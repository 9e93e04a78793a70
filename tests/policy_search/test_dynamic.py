"""The agent that a dynamic search leaves."""

import pytest
import torch

from ppf.policy_search.dynamic import _agent, measured_points
from ppf.space import uniform
from tests.agents.synthetic import quadratic


def test_its_intervals_are_widened_by_the_errors_of_measured_experts() -> None:
    objective, knots = quadratic(), torch.tensor([0.1, 0.3, 0.5], dtype=torch.double)
    experts = uniform(objective.space, knots)
    own, wide = (_agent(objective, knots, experts, factor).predicted(0.3) for factor in (1.0, 2.0))
    assert wide[0] == own[0]
    assert wide[1] == pytest.approx(2 * own[1])


@pytest.mark.parametrize("points", [1, 3, 9])
def test_every_round_measures_a_policy_and_all_take_turns(points: int) -> None:
    rounds = [range(points)[measured_points(number, 4, points)] for number in range(4)]
    assert all(rounds) and {place for own in rounds for place in own} == {*range(points)}
