"""Labelled policies as tensors."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Labels:
    """Policies and what the real pruned model scored.

    Args:
        kept: units kept, per policy and site.
        nll: mean negative log-likelihood on the labelling text, nats per token; may hold inf or nan.
        source: the sampler that drew each policy.
    """

    kept: Int[Tensor, "rows sites"]
    nll: Float[Tensor, " rows"]
    source: list[str]

    def __len__(self) -> int:
        return len(self.source)
