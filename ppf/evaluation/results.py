"""What an evaluation found."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Measured:
    """One model on the test part.

    Args:
        ratio: share of the prunable parameters removed; None: not known.
        nll: nats per token.
        bytes: of the weights, on disk for a folder, in memory for a policy.
    """

    name: str
    ratio: float | None
    nll: float
    perplexity: float
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Evaluation:
    """Models on the same windows of a text's test part."""

    text: str
    windows: int
    window: int
    results: Sequence[Measured]
