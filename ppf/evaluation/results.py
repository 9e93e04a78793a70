"""What an evaluation found."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Speed:
    """One model at one batch size, in tokens a second over the whole batch.

    Args:
        prompt: tokens of each prompt.
        prefill: prompt tokens a second.
        decode: new tokens a second.
        peak_bytes: weights and all that running takes on top of them; None: not known.
    """

    batch: int
    prompt: int
    prefill: float
    decode: float
    peak_bytes: int | None


@dataclass(frozen=True)
class Measured:
    """One model on the test part.

    Args:
        ratio: share of the prunable parameters removed; None: not known.
        nll: nats per token.
        bytes: of the weights, on disk for a folder, in memory for a policy.
        speed: per batch size, where it was asked for.
        tasks: task → metric → value, where they were asked for.
    """

    name: str
    ratio: float | None
    nll: float
    perplexity: float
    parameters: int
    bytes: int
    speed: Sequence[Speed] = ()
    tasks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """Models on the same windows of a text's test part.

    Args:
        stride: tokens from one window's start to the next.
    """

    text: str
    windows: int
    window: int
    stride: int
    results: Sequence[Measured]
