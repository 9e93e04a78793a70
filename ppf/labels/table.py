"""Labelled policies as tensors."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

PROPOSED = "search"
"""Source of the policies that a search measured, with uniform pruning and the rules' policies."""
CATASTROPHIC = 4.0
"""Increase over the dense loss, nats per token, above which all policies are equally bad."""


@dataclass(frozen=True)
class Labels:
    """Policies and their measured losses.

    Args:
        kept: number of units that each site keeps, one row per policy.
        nll: mean negative log-likelihood on the labelling text, nats per token; may be inf or nan.
        source: for each policy, the name of its sampler, or `PROPOSED`.
    """

    kept: Int[Tensor, "rows sites"]
    nll: Float[Tensor, " rows"]
    source: list[str]

    def __len__(self) -> int:
        return len(self.source)

    @property
    def proposed(self) -> Bool[Tensor, " rows"]:
        """Marks policies that a search measured: proposals, uniform pruning and rules."""
        return torch.tensor([source == PROPOSED for source in self.source], dtype=torch.bool)

    def with_rows(self, kept: Int[Tensor, "rows sites"], nll: Float[Tensor, " rows"]) -> "Labels":
        """These labels, and those of the given proposals that are not among them, each once.

        Args:
            kept: the proposals.
            nll: their losses, nats per token.
        """
        places = {tuple(row): i for i, row in reversed([*enumerate(kept.tolist())])}
        known = {tuple(row) for row in self.kept.tolist()}
        new = sorted(place for row, place in places.items() if row not in known)
        return Labels(
            torch.cat([self.kept, kept[new]]),
            torch.cat([self.nll, nll[new]]),
            self.source + [PROPOSED] * len(new),
        )
