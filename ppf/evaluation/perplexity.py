"""Perplexity of a model on text."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from ppf.errors import PPFError
from ppf.llm import fast_attention, output_head, summed_nll
from ppf.llm.windows import begin_with, check_window
from ppf.progress import say, track


class Piece(NamedTuple):
    """Windows of equal length; tokens at positions before `first` are context and not scored."""

    windows: Int[Tensor, "windows window"]
    first: int

    @property
    def scored(self) -> int:
        """Number of tokens that are scored."""
        return self.windows[:, self.first :].numel()


def evenly(windows: Int[Tensor, "windows window"], count: int) -> Int[Tensor, "chosen window"]:
    """`count` windows at even distances, or all windows if there are fewer."""
    places = torch.linspace(0, len(windows) - 1, min(count, len(windows)))
    return windows[places.round().long()]


def mean_nll(
    model: PreTrainedModel, windows: Int[Tensor, "windows window"], *, batch: int
) -> float:
    """Mean negative log-likelihood of all tokens but each window's first, nats per token.

    Its exponential is the perplexity. It may be infinite or NaN.

    Args:
        batch: windows scored at a time; halved if the GPU runs out of memory.

    Raises:
        PPFError: a window has more tokens than the model has positions.
    """
    return pieces_nll(model, [Piece(windows, 1)], batch=batch)


@torch.inference_mode()
def pieces_nll(model: PreTrainedModel, pieces: Sequence[Piece], *, batch: int) -> float:
    """Mean negative log-likelihood of the scored tokens of all pieces, nats per token.

    Args:
        batch: windows scored at a time; halved if the GPU runs out of memory.

    Raises:
        PPFError: a window has more tokens than the model has positions.
    """
    check_window(max(piece.windows.shape[1] for piece in pieces), model.config, "window")
    batches = [Piece(ids, piece.first) for piece in pieces for ids in piece.windows.split(batch)]
    count = sum(len(piece.windows) for piece in pieces)
    label = f"Scoring {count} windows of {pieces[0].windows.shape[1]}"
    try:
        total = sum(float(_summed_nll(model, part)) for part in track(batches, label))
        return total / sum(piece.scored for piece in pieces)
    except torch.OutOfMemoryError:
        if batch == 1:
            raise
    say(f"Out of memory: starting again with {batch // 2} windows at a time.")
    torch.cuda.empty_cache()
    return pieces_nll(model, pieces, batch=batch // 2)


def sliding(
    tokens: Int[Tensor, " tokens"], *, window: int, stride: int, leading: Sequence[int] = ()
) -> list[Piece]:
    """Cuts a text into windows that start `stride` tokens apart; each token is scored once.

    All tokens of the first window are scored. Later windows score the tokens after the end of the
    previous window. The last window may be shorter. Without `leading`, the first token of the text
    is context only.

    lm-evaluation-harness puts one prefix token before a text. Its rolling log-likelihood with
    `max_length=L` and `add_bos_token=False` equals ours of prefix and text with window=L+1 and
    stride=L, if L divides the number of tokens in the text. Otherwise its last window has more
    context.

    Args:
        window: tokens in a window, including `leading`.
        stride: tokens between the starts of two windows; lowered if a window, without `leading`,
            has fewer.
        leading: ids at the start of every window; they are never scored.

    Raises:
        PPFError: the stride skips tokens, or no token is left to score.

    Source: Hugging Face, "Perplexity of fixed-length models".
    """
    size, first = window - len(leading), max(len(leading), 1)
    if not (window > first and 1 <= stride <= window and len(tokens) + len(leading) > first):
        raise PPFError(
            f"{len(tokens)} tokens cannot be scored with window={window} and stride={stride}:"
            " give at least two tokens, window ≥ 2 and 1 ≤ stride ≤ window."
        )
    leading = list(leading)
    if len(tokens) <= size:
        return [Piece(begin_with(leading, tokens[None]), first)]
    stride = min(stride, size)
    whole = begin_with(leading, tokens.unfold(0, size, stride))
    rest = begin_with(leading, tokens[None, len(whole) * stride :])
    later = max(window - stride, first)
    pieces = [Piece(whole[:1], first), Piece(whole[1:], later), Piece(rest, later)]
    return [piece for piece in pieces if piece.scored]


def _summed_nll(model: PreTrainedModel, part: Piece) -> Float[Tensor, ""]:
    ids = part.windows.to(model.device)
    with fast_attention(model):
        hidden = model.get_decoder()(ids, use_cache=False).last_hidden_state
    scored = slice(part.first - 1, None)
    return summed_nll(output_head(model), hidden[:, scored], ids[:, scored])
