"""Rounds of a search: what is measured beside its proposals, and when no further one is needed."""

import math
from dataclasses import dataclass

import torch

from ppf.agents import Candidates, Objective
from ppf.agents.evolution import exchange
from ppf.predictor.scores import NOMINAL
from ppf.progress import say
from ppf.search.verify import Verification
from ppf.space import new_policies


def with_neighbours(
    objective: Objective, found: Candidates, each: int, room: int, seed: int
) -> Candidates:
    """The proposals and, for each, `each` policies one exchange away; at most `room` in all.

    Proposals come first: they are what neighbours only surround.
    """
    generator = torch.Generator(objective.device).manual_seed(seed)
    shaken = exchange(objective, found.kept.repeat(each, 1), 1, 1, generator)
    new = new_policies(shaken, found.kept)[: max(room - len(found), 0)]
    kept = torch.cat([found.kept[:room], new])
    return Candidates(kept, objective.cost(kept))


@dataclass
class TrustRegion:
    """How far from uniform pruning a search may look.

    It widens after every round whose prediction intervals held, or that had none.

    Args:
        radius: largest relative deviation of a site from its uniform share.
        widen: factor on it after a round whose intervals held.
        agreement: share of a round's proposals whose 90 % interval must hold for that.
        tolerance: largest error of the best policy's prediction with which a search may end, nats
            per token.
        gain: nats per token that a widening has to bring for the search to go on.
        settled: log-perplexity of the best policy when the region was last widened.
    """

    radius: float
    widen: float
    agreement: float
    tolerance: float
    gain: float
    settled: float = math.inf

    def exhausted(self, last: Verification, least: float) -> bool:
        """Widens the region if the last round allows it; true if the search is over.

        Args:
            least: log-perplexity of the best policy of all rounds, nats per token.
        """
        error = (last.mean - last.measured).abs()
        held = ((error <= NOMINAL * last.std) | (last.std == 0))[last.proposed].float().mean()
        if held < self.agreement:
            return False
        stuck = self.radius >= 1 or self.settled - least < self.gain
        if stuck and error[last.best] <= self.tolerance:
            say("Predicted and measured agree, and nothing better is near: no further round.")
            return True
        self.settled = least
        self.grow()
        return False

    def grow(self) -> None:
        """Widens the region by one step, at most to the whole space."""
        self.radius = min(self.widen * self.radius, 1.0)
        say(f"Predicted and measured agree: the trust region is now {self.radius:.0%}.")
