"""Runs an agent on one or several processes, and chooses the policies to measure."""

from functools import partial

import torch
from jaxtyping import Int
from torch import Tensor

from ppf.agents import Agent, Candidates, Objective, Run
from ppf.agents.base import ELITES, THREADS
from ppf.ranks import on_rank_0
from ppf.space import SteppedSpace
from ppf.threads import cpu_threads

_APART = 0.25  # share of the sites in which two chosen policies should differ
_SLACK = 0.03  # cost above the best that a chosen policy may have, nats per token


def run_search(
    agent: Agent,
    objective: Objective,
    run: Run,
    top_k: int,
    known: Int[Tensor, "known sites"] | None = None,
    *,
    apart: bool = True,
) -> Candidates:
    """Returns the `top_k` policies to measure, best predicted first, the same on every rank.

    Every rank runs the agent. The best policies of all ranks, uniform pruning and the allocation
    rules are then polished on the predictor.

    Similar policies have similar prediction errors. With `apart`, the chosen policies therefore
    differ in at least a quarter of the sites, or in fewer if the search did not find enough such
    policies.

    Args:
        known: policies that are already measured and are not returned; None: there are none.
        apart: False: the best policies are chosen, however similar; for predictors without errors.
    """
    with cpu_threads(THREADS):
        best = agent.search(objective, run).best(ELITES)
        rows = torch.arange(ELITES, device=best.cost.device).clamp_max(
            len(best) - 1
        )  # equally many
        kept, cost = run.fabric.all_gather((best.kept[rows], best.cost[rows]))
        found = Candidates.merge(Candidates(kept.flatten(0, -2), cost.flatten()))

        # Two different steps of a `SteppedSpace` are far apart already.
        stepped, stride = isinstance(objective.space, SteppedSpace), objective.space.stride
        far = partial(distinct, stride=1 if stepped else stride.to(objective.device))
        choose = far if apart else Candidates.best
        chosen = on_rank_0(
            run.fabric,
            lambda: choose(agent.choices(objective, found, known, run.seed), top_k).to("cpu"),
        )
    return chosen.to(objective.device)


def distinct(
    candidates: Candidates, count: int, stride: Int[Tensor, " sites"] | int = 1
) -> Candidates:
    """Chooses at most `count` good candidates that differ from each other, best first.

    Candidates that cost much more than the best are chosen only if there are too few others.

    Args:
        stride: fewest units by which two policies differ at a site, for each site or for all.
    """
    if not len(candidates):
        return candidates
    good = int((candidates.cost <= candidates.cost[0] + _SLACK).sum())
    candidates = candidates.best(max(good, count))
    kept, sites = candidates.kept, candidates.kept.shape[1]
    chosen = torch.zeros(len(candidates), dtype=torch.bool, device=kept.device)
    distance = torch.full_like(candidates.cost, sites, dtype=torch.long)
    apart = max(round(_APART * sites), 1)
    while chosen.sum() < min(count, len(candidates)):
        far = (distance >= apart) & ~chosen
        if not far.any():
            apart //= 2
            continue
        index = far.int().argmax()
        chosen[index] = True
        distance = torch.minimum(distance, ((kept - kept[index]).abs() >= stride).sum(1))
    return Candidates(kept[chosen], candidates.cost[chosen])
