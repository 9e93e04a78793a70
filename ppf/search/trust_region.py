"""The trust region of a search, and neighbours of proposals, which are measured too."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from ppf.agents import Candidates, Objective
from ppf.agents.evolution import exchange
from ppf.predictor.scores import NOMINAL
from ppf.progress import say
from ppf.search.verify import Verification
from ppf.space import new_policies


def with_neighbours(
    objective: Objective,
    found: Candidates,
    known: Int[Tensor, "known sites"],
    each: int,
    room: int,
    seed: int,
) -> Candidates:
    """The proposals, and random neighbours of them that are one exchange away.

    Args:
        known: policies that are measured already; they are no neighbours.
        each: neighbours of each proposal.
        room: largest number of policies in total; proposals have priority.
    """
    generator = torch.Generator(objective.device).manual_seed(seed)
    shaken = exchange(objective, found.kept.repeat(each, 1), 1, 1, generator)
    new = new_policies(shaken, torch.cat([found.kept, known.to(shaken)]))[
        : max(room - len(found), 0)
    ]
    kept = torch.cat([found.kept[:room], new])
    return Candidates(kept, objective.cost(kept))


@dataclass
class TrustRegion:
    """How far policies may deviate from uniform pruning.

    Widens the region after a round without new proposals, and after a round in which enough
    measurements lie inside their prediction intervals. Predictions without an interval (standard
    deviation 0) count as inside.

    Args:
        radius: largest relative deviation of a site from its uniform share; 1: the whole space.
        widen: factor on the radius.
        agreement: share of a round's measurements that must lie inside their 90 % intervals for
            widening.
        tolerance: the search ends only if the prediction of the round's best proposal is off by at
            most this, nats per token.
        gain: the search ends only if the region is the whole space, or the last widening lowered
            the best loss by less than this, nats per token.
        settled: measured log-perplexity of the best policy when the region was last widened, nats
            per token.
    """

    radius: float
    widen: float
    agreement: float
    tolerance: float
    gain: float
    settled: float = math.inf

    def update(self, last: Verification, least: float) -> bool:
        """Widens the region if the last round allows it; returns whether the search is over.

        Args:
            least: log-perplexity of the best policy of all rounds, nats per token.
        """
        error = (last.mean - last.measured).abs()
        proposed = last.proposed.to(error.device)
        if not proposed.any():
            say("All policies that this round found have been measured before.")
            self.settled = least
            self.grow()
            return False
        held = ((error <= NOMINAL * last.std) | (last.std == 0))[proposed].float().mean()
        if held < self.agreement:
            return False
        stuck = self.radius >= 1 or self.settled - least < self.gain
        best = last.measured.nan_to_num(torch.inf).masked_fill(~proposed, torch.inf).argmin()
        if stuck and error[best] <= self.tolerance:
            say("The search ends early: its best proposal was predicted within search.tolerance.")
            return True
        self.settled = least
        self.grow()
        return False

    def grow(self) -> None:
        """Widens the region by one step, at most to a radius of 1."""
        if self.radius >= 1 or self.widen == 1:
            return
        self.radius = min(self.widen * self.radius, 1.0)
        reach = (
            "the search now covers the whole space"
            if self.radius == 1
            else f"sites may now deviate by {self.radius:.0%} from their uniform share"
        )
        say(f"The trust region grows: {reach}.")
