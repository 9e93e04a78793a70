from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning import Fabric

from ppf.agents import Candidates, Run
from ppf.agents.ppo import average_gradients
from ppf.policy_search.runner import distinct, run_search
from ppf.pruning.allocation import ObsGlobal
from tests.agents.synthetic import Log, agent, one_process, quadratic
from tests.ranks import run_two

POLISH = {"polish": {"generations": 3, "children": 32}}
ON_TWO = {
    "ppo": {"episodes": 16, "iterations": 1, **POLISH},
    "evolution": {"generations": 5, "children": 64, "population": 16},
    "random": {"evaluations": 512},
}


def test_top_policies_are_apart_and_best_first_or_the_best_however_similar() -> None:
    run, searcher = Run(one_process(), Log(), 0), agent("evolution", generations=20, children=64)
    found = run_search(searcher, quadratic(), run, 5)
    assert len(found) == 5
    assert (found.cost.diff() >= 0).all()
    apart = (found.kept[:, None] != found.kept).sum(2) + 100 * torch.eye(5)
    assert apart.min() >= 5  # a quarter of 20 sites
    near = run_search(searcher, quadratic(), run, 5, apart=False)
    assert near.cost[-1] < found.cost[-1] and near.cost[0] == found.cost[0]


def test_polish_improves_what_the_agent_found() -> None:
    run, small = Run(one_process(), Log(), 0), {"descents": 4, "iterations": 5}
    rough, polished = (
        run_search(agent("gradient", **small, polish=polish), quadratic(), run, 5)
        for polish in (None, {"generations": 10, "children": 64})
    )
    assert polished.cost[0] < rough.cost[0]


def test_uniform_and_the_rules_are_always_among_the_candidates() -> None:
    objective = replace(quadratic(), rules={"obs_global": ObsGlobal()})
    run = Run(one_process(), Log(), 0)
    found = run_search(agent("random", evaluations=64), objective, run, 1000)
    assert (found.kept == objective.uniform()).all(1).any()
    assert found.cost[0] <= objective.cost(objective.rule_policies())[0]


def test_distinct_avoids_candidates_that_cost_much_more() -> None:
    kept = torch.ones(4, 40, dtype=torch.long)
    kept[1, 0], kept[2, 1], kept[3, :20] = 0, 0, 0
    found = distinct(Candidates(kept, torch.tensor([0.0, 0.01, 0.02, 1.0])), 3)
    assert found.cost.tolist() == pytest.approx([0, 0.01, 0.02])


def test_measured_policies_are_not_proposed_again() -> None:
    objective, small = quadratic(), {"generations": 5, "children": 32, "population": 16}
    run = Run(one_process(), Log(), 0)
    found = [run_search(agent("evolution", **small), objective, run, 2)]
    for _ in range(2):
        known = torch.cat([earlier.kept for earlier in found])
        found.append(run_search(agent("evolution", **small), objective, run, 2, known))
    proposed = torch.cat([candidates.kept for candidates in found])
    assert len(proposed.unique(dim=0)) == len(proposed) == 6


def search_on_two(folder: Path) -> None:
    """The work of one of two ranks; leaves files for both."""
    fabric, log = Fabric(accelerator="cpu", devices=2, strategy="ddp"), Log()
    fabric.launch()
    for name, changes in ON_TWO.items():
        log.clear()
        found = run_search(agent(name, **changes), quadratic(), Run(fabric, log, 0), 4)
        heard = len(log)
        own = agent(name, **changes).search(quadratic(), Run(fabric, log, 0))
        row = {"kept": found.kept, "cost": found.cost, "own": own.kept, "reports": heard}
        torch.save(row, folder / f"{name}{fabric.global_rank}")
    other = quadratic()
    other.predictor.target += 0.1 * fabric.global_rank  # ranks predict differently
    chosen = run_search(agent("random", evaluations=512), other, Run(fabric, log, 0), 4)
    torch.save(chosen.kept, folder / f"other{fabric.global_rank}")
    layer = torch.nn.Linear(3, 2)
    for parameter in layer.parameters():
        parameter.grad = torch.full_like(parameter, fabric.global_rank)
    average_gradients(layer, fabric)
    assert all((p.grad == 0.5).all() for p in layer.parameters())


def test_two_processes_agree(tmp_path: Path) -> None:
    assert run_two(search_on_two, tmp_path) == [0, 0]
    for name in ON_TWO:
        first, second = (torch.load(tmp_path / f"{name}{rank}") for rank in (0, 1))
        assert torch.equal(first["kept"], second["kept"])
        assert torch.equal(first["cost"], second["cost"])
        assert first["reports"] > 0 and second["reports"] == 0
        assert not torch.equal(first["own"][:4], second["own"][:4])  # ranks draw differently
    assert torch.equal(*(torch.load(tmp_path / f"other{rank}") for rank in (0, 1)))
