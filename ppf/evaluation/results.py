"""Results of an evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Speed:
    """Speed and memory of one model at one batch size.

    Args:
        batch: number of prompts.
        prompt: tokens in each prompt.
        prefill: prompt tokens per second, summed over the batch.
        decode: generated tokens per second, summed over the batch.
        peak_bytes: size of the weights plus the largest additional memory of a run; None: the
            system does not report it.
    """

    batch: int
    prompt: int
    prefill: float
    decode: float
    peak_bytes: int | None


@dataclass(frozen=True)
class ModelResult:
    """Results of one model on the test part of a text.

    Args:
        name: the model's name in tables.
        ratio: share of the prunable parameters that is removed, or of their bytes that a GGUF file
            saves if the policy rounds weights; None: unknown.
        nll: mean negative log-likelihood, nats per token.
        perplexity: exponential of `nll`.
        parameters: number of parameters.
        bytes: size of the weights: on disk for a folder, in memory for a policy; if the policy
            rounds weights, in a file in which all other weights have 16 bits.
        speed: one entry for each batch size; empty: speed was not measured.
        tasks: task → metric → value; empty: no task was run.
        std_error: standard error of `nll` over the windows, nats per token; None: unknown.
        asked: ratio that the policy was found for; None: the model is dense, or no policy is known.
    """

    name: str
    ratio: float | None
    nll: float
    perplexity: float
    parameters: int
    bytes: int
    speed: Sequence[Speed] = ()
    tasks: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    std_error: float | None = None
    asked: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """Results of several models on the same windows of a text's test part.

    Args:
        text: name of the text.
        windows: number of windows.
        window: tokens in a window.
        stride: tokens between the starts of two windows.
        results: one entry for each model.
        rounded: whether a policy also rounds weights; then the ratios are shares of bytes.
    """

    text: str
    windows: int
    window: int
    stride: int
    results: Sequence[ModelResult]
    rounded: bool = False
