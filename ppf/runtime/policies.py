"""Objects that give a policy for a pruning ratio."""

import math
from dataclasses import dataclass
from typing import Protocol

from ppf.commands import invocation
from ppf.errors import PPFError


class Policies(Protocol):
    """Gives policies within milliseconds, without the predictor or the model."""

    def policy(self, ratio: float) -> list[int]:
        """Units that each site keeps.

        Raises:
            PPFError: there is no policy for the ratio.
        """

    def predicted(self, ratio: float) -> tuple[float, float] | None:
        """Predicted log-perplexity and its standard deviation, nats per token; None: unknown."""


@dataclass(frozen=True)
class FoundPolicy:
    """The one policy of a static search."""

    ratio: float
    kept: list[int]
    prediction: tuple[float, float] | None

    def policy(self, ratio: float) -> list[int]:
        if not math.isclose(ratio, self.ratio):
            raise PPFError(
                f"the search found one policy, for ratio={self.ratio}, and none for {ratio}:"
                f" run `{invocation('search', 'mode=chain')}` to get an agent for all ratios."
            )
        return self.kept

    def predicted(self, ratio: float) -> tuple[float, float] | None:
        return self.prediction if math.isclose(ratio, self.ratio) else None
