"""Perplexity of a model on text."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ppf.errors import PPFError, out_of_memory
from ppf.llm import fast_attention, output_head, window_nll
from ppf.llm.loading import check_window
from ppf.progress import say, track
from ppf.text import Text
from ppf.text.windows import begin_with


class Piece(NamedTuple):
    """Windows of equal length; tokens at positions before `first` are context and not scored."""

    windows: Int[Tensor, "windows window"]
    first: int

    @property
    def scored(self) -> int:
        """Number of tokens that are scored."""
        return self.windows[:, self.first :].numel()


def mean_nll(
    model: PreTrainedModel, windows: Int[Tensor, "windows window"], *, batch: int
) -> float:
    """As `pieces_nll`, of all tokens but each window's first."""
    return pieces_nll(model, [Piece(windows, 1)], batch=batch)


def pieces_nll(model: PreTrainedModel, pieces: Sequence[Piece], *, batch: int) -> float:
    """Mean negative log-likelihood of the scored tokens of all pieces, nats per token.

    Its exponential is the perplexity. It may be infinite or NaN.

    Args:
        batch: windows scored at a time; halved if memory runs out.

    Raises:
        PPFError: a window has more tokens than the model has positions.
    """
    return pieces_loss(model, pieces, batch=batch)[0]


def pieces_loss(
    model: PreTrainedModel, pieces: Sequence[Piece], *, batch: int
) -> tuple[float, float]:
    """As `pieces_nll`, with its standard error (a ratio of sums over windows); NaN of one window.

    Source: Cochran, "Sampling Techniques" (1977), chapter 6.
    """
    sums, tokens = _sums(model, pieces, batch=batch)
    mean, windows = sums.sum() / tokens.sum(), len(sums)
    variance = (sums - mean * tokens).square().sum() * windows / (windows - 1 or math.nan)
    return float(mean), float(variance.sqrt() / tokens.sum())


def window_losses(
    model: PreTrainedModel, pieces: Sequence[Piece], *, batch: int
) -> Float[Tensor, " windows"]:
    """As `pieces_nll`, for each window."""
    sums, tokens = _sums(model, pieces, batch=batch)
    return sums / tokens


@torch.inference_mode()
def _sums(
    model: PreTrainedModel, pieces: Sequence[Piece], *, batch: int
) -> tuple[Float[Tensor, " windows"], Int[Tensor, " windows"]]:
    """The summed negative log-likelihood and the number of scored tokens of each window."""
    check_window(max(piece.windows.shape[1] for piece in pieces), model.config, "window")
    batches = [Piece(ids, piece.first) for piece in pieces for ids in piece.windows.split(batch)]
    count = sum(len(piece.windows) for piece in pieces)
    label = f"Scoring {count} windows of {pieces[0].windows.shape[1]}"
    try:
        sums = torch.cat([_window_nll(model, part) for part in track(batches, label)])
        tokens = [torch.full((len(p.windows),), p.windows.shape[1] - p.first) for p in batches]
        return sums, torch.cat(tokens)
    except Exception as error:
        if batch == 1 or not out_of_memory(error):
            raise
    say(f"Out of memory: starting again with {batch // 2} windows at a time.")
    torch.cuda.empty_cache()
    return _sums(model, pieces, batch=batch // 2)


def sliding(
    tokens: Int[Tensor, " tokens"], *, window: int, stride: int, leading: Sequence[int] = ()
) -> list[Piece]:
    """Cuts a text into windows that start `stride` tokens apart. Each token is scored once.

    All tokens of the first window are scored. Later windows score the tokens after the end of the
    previous window. The last window may be shorter. Without `leading`, the first token of the text
    is context only; with stride=window so is the first token of every window.

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


def scored_pieces(
    text: Text, tokenizer: PreTrainedTokenizerBase, window: int | None, stride: int | None
) -> list[Piece]:
    """Windows of a text's test part: those of the text itself, or cuts of the whole part.

    Args:
        window: tokens in a window; None: as the text has it.
        stride: as for `sliding`; None: windows do not overlap, and what is left over is not scored.

    Raises:
        PPFError: the part has no window of this length.
    """
    if stride:
        tokens, leading = text.stream("test", tokenizer), text.leading(tokenizer)
        return sliding(tokens, window=window or text.window, stride=stride, leading=leading)
    if not window:
        return [Piece(text.tokens("test", tokenizer), 1)]
    windows = text.every_window("test", tokenizer, window)
    if not len(windows):
        raise PPFError(
            f"the test part of text={text.name} is shorter than window={window}: give a"
            " smaller window, or a longer text."
        )
    return [Piece(windows, 1)]


def _window_nll(model: PreTrainedModel, part: Piece) -> Float[Tensor, " windows"]:
    ids = part.windows.to(model.device)
    with fast_attention(model):
        hidden = model.get_decoder()(ids, use_cache=False).last_hidden_state
    scored = slice(part.first - 1, None)
    return window_nll(output_head(model), hidden[:, scored], ids[:, scored])
