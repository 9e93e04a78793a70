import pytest

from ppf.agents import Run
from ppf.policy_search.runner import run_search
from ppf.space import Prunable, Space, build_space
from tests.agents.synthetic import Log, agent, one_process, quadratic

POLISH = {"polish": {"generations": 3, "children": 32}}
SMALL = {
    "ppo": {"episodes": 16, "iterations": 2, **POLISH},
    "gradient": {"descents": 4, "iterations": 10, **POLISH},
    "obs_global": {},
    "evolution": {"generations": 5, "children": 32},
    "random": {"evaluations": 64},
    "uniform": {},
}


def space(kinds: list[str], whole_sites: bool) -> Space:
    places = [("attention", 4, 700), ("mlp", 192, 9)]
    return build_space(
        [Prunable(layer, *place) for layer in range(3) for place in places],
        name="any",
        kinds=kinds,
        channel_multiple=64,
        whole_sites=whole_sites,
    )


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    ("ratio", "searched"),
    [
        (0.05, space(["attention", "mlp"], False)),
        (0.6, space(["attention"], False)),
        (0.05, space(["mlp"], False)),
        (0.6, space(["attention", "mlp"], True)),
    ],
    ids=["width", "attention", "mlp", "depth"],
)
def test_every_agent_searches_every_space(name: str, ratio: float, searched: Space) -> None:
    objective = quadratic(searched, ratio)
    found = run_search(agent(name, **SMALL[name]), objective, Run(one_process(), Log(), 0), 3)
    assert 1 <= len(found) <= 3
    assert (searched.removed(found.kept) >= ratio * searched.total - 1e-5).all()
    if name not in ("uniform", "obs_global"):
        assert found.cost[0] <= objective.cost(objective.uniform())[0]


def test_sites_without_a_cost_stay_whole() -> None:
    searched = space(["attention", "mlp"], False).priced("kv", [64, 0] * 3)
    objective = quadratic(searched, 0.5)
    for name, changes in SMALL.items():
        found = run_search(agent(name, **changes), objective, Run(one_process(), Log(), 0), 3)
        assert (found.kept[:, 1::2] == searched.units[1::2]).all(), name
        assert (searched.saved(found.kept) == 0.5).all(), name
