"""Labelled policies as tensors."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

PROPOSED = "search"
"""The source of policies that a search proposed."""
ACQUIRED = "acquired"
"""The source of policies that a predictor asked for."""


@dataclass(frozen=True)
class Labels:
    """Policies and what the real pruned model scored.

    Args:
        kept: units kept, per policy and site.
        nll: mean negative log-likelihood on the labelling text, nats per token; may hold inf or
            nan.
        source: the sampler that drew each policy.
    """

    kept: Int[Tensor, "rows sites"]
    nll: Float[Tensor, " rows"]
    source: list[str]

    def __len__(self) -> int:
        return len(self.source)

    def catastrophic(self, dense_nll: float, limit: float) -> Bool[Tensor, " rows"]:
        """Marks policies over `limit` nats above the dense model, or without a finite label."""
        return ~(self.nll <= dense_nll + limit)

    @property
    def proposed(self) -> Bool[Tensor, " rows"]:
        """Whether a search proposed the policy."""
        return self._from(PROPOSED)

    @property
    def acquired(self) -> Bool[Tensor, " rows"]:
        """Whether a predictor asked for the policy."""
        return self._from(ACQUIRED)

    def with_rows(
        self, kept: Int[Tensor, "rows sites"], nll: Float[Tensor, " rows"], source: str
    ) -> "Labels":
        """These labels and those policies that are not among them yet."""
        known = {tuple(row) for row in self.kept.tolist()}
        new = [i for i, row in enumerate(kept.tolist()) if tuple(row) not in known]
        return Labels(
            torch.cat([self.kept, kept[new]]),
            torch.cat([self.nll, nll[new]]),
            self.source + [source] * len(new),
        )

    def _from(self, name: str) -> Bool[Tensor, " rows"]:
        return torch.tensor([source == name for source in self.source], dtype=torch.bool)
