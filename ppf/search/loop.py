"""Rounds of a search: what is measured beside its proposals, and when no further one is needed."""

import torch
from jaxtyping import Int
from torch import Tensor

from ppf.agents import Candidates, Objective
from ppf.agents.evolution import exchange
from ppf.predictor.scores import NOMINAL
from ppf.search.verify import Verification


def with_neighbours(
    objective: Objective, found: Candidates, each: int, room: int, seed: int
) -> Candidates:
    """The proposals and, for each, `each` policies one exchange away; at most `room` in all.

    Proposals come first: they are what neighbours only surround.
    """
    generator = torch.Generator(objective.device).manual_seed(seed)
    shaken = exchange(objective, found.kept.repeat(each, 1), 1, 1, generator)
    new = _new(shaken, found.kept)[: max(room - len(found), 0)]
    kept = torch.cat([found.kept[:room], new])
    return Candidates(kept, objective.cost(kept))


def agrees(verified: Verification, share: float, tolerance: float) -> bool:
    """Whether the predictor is right where the search looked.

    Args:
        share: of the proposed policies whose 90 % interval must hold.
        tolerance: largest error of the best measured policy's prediction, nats per token.
    """
    error = (verified.mean - verified.measured).abs()
    held = (error <= NOMINAL * verified.std)[verified.proposed]
    return bool(held.float().mean() >= share and error[verified.best] <= tolerance)


def _new(
    kept: Int[Tensor, "n sites"], known: Int[Tensor, "known sites"]
) -> Int[Tensor, "new sites"]:
    """The distinct policies that are not known yet, in their order."""
    old = set(map(tuple, known.tolist()))
    rows = [row for row in dict.fromkeys(map(tuple, kept.tolist())) if row not in old]
    return kept.new_tensor(rows).reshape(-1, kept.shape[1])
