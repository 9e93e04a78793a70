"""Who answers a pruning ratio with a policy."""

import math
from dataclasses import dataclass
from typing import Protocol

import torch

from ppf.errors import PPFError
from ppf.space import Space, uniform


class Policies(Protocol):
    """A policy for a pruning ratio, at once and without the predictor or the model."""

    def policy(self, ratio: float) -> list[int]:
        """Kept units per site; raises PPFError where there is no policy for the ratio."""

    def predicted(self, ratio: float) -> tuple[float, float] | None:
        """Mean and standard deviation of the policy's log-perplexity, nats per token, if known."""


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
                " search once with `python search.py mode=dynamic` to get an agent for any ratio."
            )
        return self.kept

    def predicted(self, ratio: float) -> tuple[float, float] | None:
        return self.prediction if math.isclose(ratio, self.ratio) else None


@dataclass(frozen=True)
class UniformPolicies:
    """The same share of every site: what there is without a search."""

    space: Space

    def policy(self, ratio: float) -> list[int]:
        return uniform(self.space, torch.tensor([ratio], dtype=torch.double))[0].tolist()

    def predicted(self, ratio: float) -> tuple[float, float] | None:
        return None
