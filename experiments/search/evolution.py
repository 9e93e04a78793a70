"""Budget-preserving evolution on the real model, to compare with: no predictor.

Source: EvoPress (arXiv 2410.14649) and Týr-the-Pruner (NeurIPS 2025): level-switch mutations of one
parent, selection by measured loss. Order, compensation, text and budget are those of the searches.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from ppf.agents import Objective
from ppf.agents.evolution import exchange
from ppf.stages.collect import label_store
from ppf.stages.prepare import PruningContext

Measure = Callable[[Int[Tensor, "n sites"]], Tensor]


class Evolved(NamedTuple):
    """The best policy, its loss in nats per token, and all policies that were measured for it."""

    kept: list[int]
    nll: float
    measured: Int[Tensor, "evaluations sites"]


def evolve(
    objective: Objective,
    measure: Measure,
    *,
    evaluations: int,
    seed: int,
    children: int = 8,
    exchanges: int = 3,
    step: int = 2,
) -> Evolved:
    """The best policy of `evaluations` measured ones.

    The parent, uniform pruning at first, is replaced by the best of its children where that is
    better.

    Args:
        measure: policies to their loss on the labelling part.
        children: of a generation.
        exchanges: most exchanges between two sites in one child.
        step: most units that move in one exchange.
    """
    generator = torch.Generator().manual_seed(seed)
    parent = objective.uniform()
    loss = measure(parent)
    seen = {tuple(parent[0].tolist())}
    while len(seen) < evaluations:
        drawn = exchange(objective, parent.expand(4 * children, -1), exchanges, step, generator)
        fresh = [row for row in dict.fromkeys(map(tuple, drawn.tolist())) if row not in seen]
        fresh = fresh[: min(children, evaluations - len(seen))]
        if not fresh:
            break
        seen.update(fresh)
        kept = torch.tensor(fresh)
        losses = measure(kept).nan_to_num(torch.inf)
        if losses.min() < loss:
            parent, loss = kept[losses.argmin()][None], losses.min()[None]
    return Evolved(parent[0].tolist(), float(loss), torch.tensor(sorted(seen)))


def label_seconds(context: PruningContext, kept: Tensor) -> float:
    """What the labels of policies, all different, took to make."""
    store = label_store(context)
    return sum(store[policy].seconds for policy in kept.tolist())
