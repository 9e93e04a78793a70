"""The trust region of a search: how far policies may deviate from uniform pruning."""

from dataclasses import dataclass

from ppf.policy_search.verify import Verification
from ppf.predictor.scores import NOMINAL
from ppf.progress import say

_AGREEMENT = 0.8  # share of a round's measurements that must lie inside their 90 % intervals
_GROWTH = 1.7  # factor of a step


@dataclass
class TrustRegion:
    """How far policies may deviate from uniform pruning.

    Args:
        radius: largest relative deviation of a site from its uniform share; 1: the whole space.
    """

    radius: float

    def update(self, last: Verification) -> None:
        """Widens the region if the last round allows it.

        That is so if enough measurements lie inside their prediction intervals, or if the round
        has no new proposal. Predictions without an interval (standard deviation 0) count as inside.
        """
        error = (last.mean - last.measured).abs()
        proposed = last.proposed.to(error.device)
        inside = ((error <= NOMINAL * last.std) | (last.std == 0))[proposed].float()
        if not len(inside):
            say("All policies that this round found have been measured before.")
        if not len(inside) or inside.mean() >= _AGREEMENT:
            self.grow()

    def grow(self) -> None:
        """Widens the region by one step, at most to a radius of 1."""
        if self.radius >= 1:
            return
        self.radius = min(_GROWTH * self.radius, 1.0)
        say(f"Sites may now deviate by {self.radius:.0%} from their uniform share.")
