import pytest

from ppf.agents import Run
from ppf.policy_search.runner import run_search
from ppf.space import Space
from tests.agents.synthetic import Log, agent, layered, one_process, quadratic

POLISH = {"polish": {"generations": 3, "children": 32}}
SMALL = {
    "ppo": {"episodes": 16, "iterations": 2, **POLISH},
    "gradient": {"descents": 4, "iterations": 10, **POLISH},
    "obs_global": {},
    "evolution": {"generations": 5, "children": 32},
    "random": {"evaluations": 64},
    "uniform": {},
}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(
    ("ratio", "searched"),
    [
        (0.05, layered(3)),
        (0.6, layered(3, ["attention"])),
        (0.05, layered(3, ["mlp"])),
        (0.6, layered(3, whole_sites=True)),
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
    searched = layered(3, groups=4).priced("kv", [64, 0] * 3)
    objective = quadratic(searched, 0.5)
    for name, changes in SMALL.items():
        found = run_search(agent(name, **changes), objective, Run(one_process(), Log(), 0), 3)
        assert (found.kept[:, 1::2] == searched.units[1::2]).all(), name
        assert (searched.saved(found.kept) == 0.5).all(), name
