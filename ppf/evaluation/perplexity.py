"""Perplexity of a model on text, measured or predicted."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ppf.errors import PPFError, out_of_memory
from ppf.llm import fast_attention, output_head, scored_tokens, tokens_of, window_nll
from ppf.llm.loading import check_window
from ppf.progress import say, track
from ppf.text import Text

_TWO_SIDED_95 = 1.96  # standard deviations


class Mean(NamedTuple):
    """A mean over windows and its standard error (NaN for one window), nats per token."""

    nll: float
    std_error: float

    @classmethod
    def of(cls, losses: Float[Tensor, " windows"]) -> "Mean":
        """The mean of windows of equal length."""
        variance = losses.var(correction=0) / (len(losses) - 1 or math.nan)
        return cls(float(losses.mean()), float(variance.sqrt()))


@dataclass(frozen=True)
class LogPerplexity:
    """A mean negative log-likelihood, measured or predicted.

    Args:
        nll: mean negative log-likelihood, nats per token.
        std: standard deviation of a prediction, nats per token; None: measured on the real model.
        std_error: standard error of a measurement over the windows, nats per token; None: unknown;
            NaN: of one window.
    """

    nll: float
    std: float | None = None
    std_error: float | None = None

    @property
    def perplexity(self) -> float:
        """exp(nll); infinite if it overflows."""
        return _exp(self.nll)

    def record(self) -> dict[str, Any]:
        """The values for a JSON file; numbers that are not finite become null."""
        known: dict[str, Any] = {"nll": _finite(self.nll), "perplexity": _finite(self.perplexity)}
        if self.std is not None:
            reach = _TWO_SIDED_95 * self.std
            ends = _exp(self.nll - reach), _exp(self.nll + reach)
            known |= {"std": self.std, "interval_95": [_finite(end) for end in ends]}
        if self.std_error is not None and math.isfinite(self.std_error):
            known["std_error"] = self.std_error
        return known


def mean_nll(
    model: PreTrainedModel, windows: Int[Tensor, "windows window"], *, batch: int
) -> float:
    """The mean of `window_losses`. Its exponential is the perplexity."""
    return float(window_losses(model, windows, batch=batch).mean())


@torch.inference_mode()
def window_losses(
    model: PreTrainedModel, windows: Int[Tensor, "windows window"], *, batch: int
) -> Float[Tensor, " windows"]:
    """Negative log-likelihood of each window over the mean number of its scored tokens, in nats.

    So the mean over the windows is that over all scored tokens. It may be infinite or NaN.

    Args:
        batch: windows scored at a time; halved if memory runs out.

    Raises:
        PPFError: a window has more tokens than the model has positions.
    """
    check_window(windows.shape[1], model.config, "window")
    label = f"Scoring {len(windows)} windows of {windows.shape[1]}"
    try:
        parts = track(windows.split(batch), label)
        sums = torch.cat([_window_nll(model, part) for part in parts])
        return sums / (scored_tokens(windows) / len(windows))
    except Exception as error:
        if batch == 1 or not out_of_memory(error):
            raise
    say(f"Out of memory: starting again with {batch // 2} windows at a time.")
    torch.cuda.empty_cache()
    return window_losses(model, windows, batch=batch // 2)


def scored_windows(
    text: Text, tokenizer: PreTrainedTokenizerBase, window: int | None
) -> Int[Tensor, "windows window"]:
    """Windows of a text's test part: those of the text itself, or cuts of the whole part.

    Args:
        window: tokens in a window; None: as the text has it. What is left over is not scored.

    Raises:
        PPFError: the part has no window of this length.
    """
    if not window:
        return text.tokens("test", tokenizer)
    windows = text.every_window("test", tokenizer, window)
    if not len(windows):
        raise PPFError(
            f"the test part of text={text.name} is shorter than window={window}: give a"
            " smaller window, or a longer text."
        )
    return windows


def _window_nll(
    model: PreTrainedModel, windows: Int[Tensor, "windows window"]
) -> Float[Tensor, " windows"]:
    ids = windows.to(model.device)
    with fast_attention(model):
        hidden = model.get_decoder()(tokens_of(ids), use_cache=False).last_hidden_state
    return window_nll(output_head(model), hidden, ids)


def _exp(nll: float) -> float:
    return float(torch.tensor(nll, dtype=torch.double).exp())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
