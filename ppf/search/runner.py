"""Runs an agent on one process or many, and picks what is worth measuring."""

import torch
from lightning import Fabric

from ppf.agents import Agent, Candidates, Objective, Run
from ppf.ranks import on_rank_0
from ppf.threads import cpu_threads

_GATHERED = 256  # policies that each rank hands over
_APART = 0.25  # share of the sites in which chosen policies differ, where that can be had


def run_search(agent: Agent, objective: Objective, run: Run, top_k: int) -> Candidates:
    """The `top_k` policies to measure, best predicted first, the same on every rank.

    The agent's rollouts are shared over the ranks; what all of them found, together with the
    policies of uniform pruning and the allocation rules, is polished on the predictor. Several
    near-identical policies would share the predictor's error, so the chosen ones differ in a
    quarter of the sites; that yields where the search found too few of that kind.
    """
    with cpu_threads(agent.threads):
        found = _gather(agent.search(objective, run), run.fabric)
        chosen = on_rank_0(
            run.fabric, lambda: distinct(_polished(agent, objective, found, run), top_k).to("cpu")
        )
    return chosen.to(objective.device)


def _polished(agent: Agent, objective: Objective, found: Candidates, run: Run) -> Candidates:
    """What was found, uniform pruning and the rules, polished."""
    known = torch.cat([objective.uniform(), objective.ruled()])
    found = Candidates.merge(found, objective.candidates(known))
    if agent.polish is None:
        return found
    generator = torch.Generator(objective.device).manual_seed(run.seed)
    return agent.polish.improve(objective, found, generator)


def distinct(candidates: Candidates, count: int) -> Candidates:
    """The best candidates that differ from all better chosen ones; at most `count`, best first."""
    kept, sites = candidates.kept, candidates.kept.shape[1]
    chosen = torch.zeros(len(candidates), dtype=torch.bool, device=kept.device)
    distance = torch.full_like(candidates.cost, sites, dtype=torch.long)
    apart = max(round(_APART * sites), 1)
    while apart and chosen.sum() < min(count, len(candidates)):
        far = (distance >= apart) & ~chosen
        if not far.any():
            apart //= 2
            continue
        index = far.int().argmax()
        chosen[index] = True
        distance = torch.minimum(distance, (kept != kept[index]).sum(1))
    return Candidates(kept[chosen], candidates.cost[chosen])


def _gather(found: Candidates, fabric: Fabric) -> Candidates:
    """The best of every rank."""
    best = found.best(_GATHERED)
    rows = torch.arange(_GATHERED, device=best.cost.device).clamp_max(len(best) - 1)
    kept, cost = fabric.all_gather((best.kept[rows], best.cost[rows]))
    return Candidates.merge(Candidates(kept.reshape(-1, best.kept.shape[1]), cost.reshape(-1)))
