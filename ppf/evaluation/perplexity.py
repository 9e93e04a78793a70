"""Perplexity of a model on text."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ppf.errors import PPFError, out_of_memory
from ppf.llm import fast_attention, output_head, scored_tokens, tokens_of, window_nll
from ppf.llm.loading import check_window
from ppf.progress import say, track
from ppf.text import Text


class Mean(NamedTuple):
    """A mean over windows and its standard error (NaN for one window), nats per token."""

    nll: float
    std_error: float

    @classmethod
    def of(cls, losses: Float[Tensor, " windows"]) -> "Mean":
        """The mean of windows of equal length."""
        variance = losses.var(correction=0) / (len(losses) - 1 or math.nan)
        return cls(float(losses.mean()), float(variance.sqrt()))


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
