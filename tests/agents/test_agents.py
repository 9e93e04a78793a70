from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ppf.agents import Agent, Candidates, Objective, Run, ppo
from ppf.predictor.protocol import Prediction
from ppf.pruning.allocation import ObsGlobal
from ppf.space import Space
from tests.agents.synthetic import Log, Quadratic, agent, layered, one_process, quadratic

SMALL = {
    "ppo": {"episodes": 128, "iterations": 12},
    "gradient": {"descents": 16, "iterations": 40},
    "evolution": {"generations": 20, "children": 96, "population": 32},
    "random": {"evaluations": 2048},
    "uniform": {},
}
FEW = {
    **SMALL,
    "ppo": {"episodes": 16, "iterations": 2},
    "gradient": {"descents": 16, "iterations": 5},
    "evolution": {"generations": 10, "children": 32, "population": 16},
}


def small(name: str) -> Agent:
    """Good at `quadratic()`, if it can be within seconds."""
    return agent(name, **SMALL[name])


def few(name: str) -> Agent:
    """For what must hold after few steps too."""
    return agent(name, **FEW[name])


def best(name: str, objective: Objective, seed: int = 0) -> float:
    """The gap that an agent leaves to the best policy that there is, as a share of uniform's."""
    found = small(name).search(objective, Run(one_process(), Log(), seed))
    floor = 3 + objective.spread_penalty * 0.01
    gap = objective.cost(objective.uniform()).item() - floor
    return (found.cost[0].item() - floor) / gap


@pytest.mark.parametrize(
    "name", [pytest.param("ppo", marks=pytest.mark.slow), "gradient", "evolution"]
)
def test_beats_uniform_and_random_at_equal_evaluations(name: str) -> None:
    random, searched = quadratic(layered(6)), quadratic(layered(6))
    floor, gap = best("random", random), best(name, searched)
    assert len(searched.predictor.asked) <= len(random.predictor.asked)
    assert gap < 0.02 < 0.1 < floor < 1


@pytest.mark.parametrize("name", SMALL)
def test_the_same_seed_finds_the_same_policies(name: str) -> None:
    objective = quadratic(layered(4))
    runs = [few(name).search(objective, Run(one_process(), Log(), seed)) for seed in (3, 3, 4)]
    assert torch.equal(runs[0].kept, runs[1].kept) and torch.equal(runs[0].cost, runs[1].cost)
    assert name == "uniform" or not torch.equal(runs[0].kept, runs[2].kept)
    check_candidates(runs[0], objective)


@pytest.mark.parametrize("name", SMALL)
def test_at_ratio_zero_the_dense_policy_is_found(name: str) -> None:
    objective = quadratic(layered(2), ratio=0.0)
    found = few(name).search(objective, Run(one_process(), Log(), 0))
    check_candidates(found, objective)
    assert found.kept.tolist() == [objective.space.dense.tolist()]


def check_candidates(found: Candidates, objective: Objective) -> None:
    """Candidates are distinct, sorted and on budget."""
    excess = objective.space.removed(found.kept) - objective.ratio * objective.space.total
    assert (excess > -1e-5).all() and (excess < objective.space.params.min()).all()
    assert len(found.kept.unique(dim=0)) == len(found)
    assert (found.cost.diff() >= 0).all()
    torch.testing.assert_close(found.cost, objective.cost(found.kept))


def test_ppo_learns_many_ratios_at_once() -> None:
    log, objective = Log(), replace(quadratic(layered(4)), interval=(0.1, 0.5))
    learnt, tried = small("ppo").learn(objective, Run(one_process(), log, 0))
    assert log[-1][1]["reward"] > 0.2 > 0 > log[0][1]["reward"]
    ratio = torch.tensor([0.2, 0.3, 0.4], dtype=torch.double)
    kept = learnt(ratio)
    excess = objective.space.removed(kept) - ratio * objective.space.total
    assert (excess > -1e-5).all() and (excess < objective.space.params.min()).all()
    assert (objective.gain(objective.cost(kept), ratio) > 0).all()
    assert len(tried) < 5  # nothing that was played at other ratios


def test_training_stops_early(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ppo, "_PATIENCE", 0)
    log, longer = Log(), {"iterations": 100}
    agent("ppo", **FEW["ppo"] | longer).search(quadratic(layered(2)), Run(one_process(), log, 0))
    assert len(log) < 40
    rewards = [metrics["reward"] for _, metrics in log]
    assert rewards[-1] <= max(rewards[:-1])


@pytest.mark.parametrize("name", ["ppo", "evolution"])
@pytest.mark.parametrize("loss", [torch.inf, torch.nan])
def test_policies_without_a_finite_loss_do_not_stop_an_agent(name: str, loss: float) -> None:
    objective = quadratic(layered(2))
    objective = replace(objective, predictor=Broken(objective.space, loss))
    found = few(name).search(objective, Run(one_process(), Log(), 0))
    assert found.cost[0] < 4
    assert (found.kept >= 0).all() and (found.kept <= objective.space.units).all()


class Broken(Quadratic):
    """Policies that keep an even number of units at the last site have no finite loss."""

    def __init__(self, space: Space, loss: float) -> None:
        super().__init__(space, 0.3)
        self.loss = loss

    def predict(self, kept: Tensor) -> Prediction:
        mean, std = super().predict(kept)
        return Prediction(mean.masked_fill(kept[:, -1] % 2 == 0, self.loss), std)


def test_searches_start_from_the_policies_of_the_rules() -> None:
    objective = replace(quadratic(), rules={"obs_global": ObsGlobal()})
    assert len(objective.starts()) == len(quadratic().starts()) + 1
    assert len(objective.rule_policies()) == 1 and len(quadratic().rule_policies()) == 0
    measured = replace(objective, measured=objective.uniform().repeat(2, 1))
    assert len(measured.starts()) == len(objective.starts()) + 2
    lower, _, upper = objective.region(objective.ratios(1))
    assert ((objective.starts() >= lower) & (objective.starts() <= upper)).all()


def test_a_later_round_starts_from_the_networks_of_the_round_before() -> None:
    objective, still = quadratic(layered(2)), {"episodes": 16, "iterations": 1, "lr": 1e-9}
    first: dict[str, dict[str, Tensor]] = {}
    few("ppo").learn(objective, Run(one_process(), Log(), 0, learnt=first))
    later = [deepcopy(first), {}]
    for learnt in later:
        agent("ppo", **still).learn(objective, Run(one_process(), Log(), 1, learnt=learnt))
    wanted, warm, cold = (
        torch.cat([*map(torch.ravel, x["loss"].values())]) for x in (first, *later)
    )
    torch.testing.assert_close(warm, wanted)
    assert not torch.allclose(cold, wanted, atol=1e-3)
