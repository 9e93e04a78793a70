"""Policies along the ratio, and the agent that a dynamic search makes of them."""

from dataclasses import replace

import pytest
import torch

from ppf.policy_search.dynamic import Dynamic, _agent, improve_along, measured_points
from ppf.predictor.protocol import Prediction
from ppf.space import uniform
from tests.agents.synthetic import agent, layered, quadratic


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


KNOTS = torch.linspace(0.1, 0.5, 5, dtype=torch.double)


def test_without_a_local_search_the_latest_policies_of_the_learner_are_stored() -> None:
    objective = quadratic(layered(4))
    latest, before = (uniform(objective.space, ratios) for ratios in (KNOTS, KNOTS / 2))
    own = Dynamic((0.1, 0.5), 5, 4, None, 2, trust_region=1.0, spread_penalty=0.0)
    stored = own._improved(None, objective, KNOTS, [latest, before])  # needs no problem
    assert torch.equal(stored, latest)


class Moving:
    """At every ratio, attention should stay whole and the later of two MLPs lose twice as much."""

    def __init__(self) -> None:
        self.space = layered(4)
        self.weight = torch.ones(len(self.space))
        self.weight[::2], self.weight[3::4] = 20.0, 0.5

    def predict(self, kept: torch.Tensor) -> Prediction:
        lost = 1 - kept / self.space.units
        mean = 3 + (self.weight * lost.square()).sum(1)
        return Prediction(mean, torch.full_like(mean, 0.01))


def test_a_policy_is_moved_by_scaling_what_it_removes() -> None:
    objective = quadratic(layered(4), ratio=0.2)
    units = objective.space.units.double()
    kept = objective.space.dense.clone()
    kept[1], kept[3] = 0, units[3] // 2
    scale = 0.2 / objective.space.saved(kept)
    expected = units - (units - kept) * scale
    torch.testing.assert_close(objective.moved(kept), expected[None])
    assert (objective.moved(objective.space.dense) == units).all()


def test_experts_are_good_and_alike_along_the_ratio() -> None:
    objective = replace(quadratic(layered(4)), predictor=Moving())
    start = torch.stack([objective.at(float(r)).uniform()[0] for r in KNOTS])
    polish = agent("evolution", generations=12, children=64)
    generator = torch.Generator().manual_seed(0)
    experts = improve_along(objective, KNOTS, start[None], polish, generator)

    over = objective.space.saved(experts) - KNOTS
    assert (over > -1e-9).all() and (over < 0.01).all()
    gain = objective.gain(objective.cost(experts), KNOTS)
    assert gain[0] > -0.01 and (gain[1:] > 1).all()  # uniform hardly prunes attention at 10 %
    assert (experts.diff(dim=0) <= 1).all()  # more is kept at lower ratios, up to rounding
    assert (experts[:, ::2] >= start[:, ::2]).all()
