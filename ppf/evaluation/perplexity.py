"""What a model scores on text."""

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
    """Windows of equal length; their tokens before `first` are context only."""

    windows: Int[Tensor, "windows window"]
    first: int

    @property
    def scored(self) -> int:
        return self.windows[:, self.first :].numel()


def evenly(windows: Int[Tensor, "windows window"], count: int) -> Int[Tensor, "chosen window"]:
    """`count` of the windows, evenly spread over them, or all of them where they are fewer."""
    places = torch.linspace(0, len(windows) - 1, min(count, len(windows)))
    return windows[places.round().long()]


def mean_nll(
    model: PreTrainedModel, windows: Int[Tensor, "windows window"], *, batch: int
) -> float:
    """Mean negative log-likelihood of each next token inside its window, nats per token.

    Perplexity is its exponential. A value that is not finite is kept as such.

    Args:
        batch: windows scored at a time; halved when memory does not suffice.
    """
    return pieces_nll(model, [Piece(windows, 1)], batch=batch)


@torch.inference_mode()
def pieces_nll(model: PreTrainedModel, pieces: Sequence[Piece], *, batch: int) -> float:
    """The same over windows of several lengths, some of whose tokens are only context.

    Raises:
        PPFError: the model has fewer positions than a window has tokens.
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
    """A text cut into windows that start `stride` tokens apart, so that each token counts once.

    The first window is scored whole, each later one on the tokens that the last one did not reach;
    the last window may be shorter. Without `leading` the text's first token is context only.

    lm-evaluation-harness reads a prefix token and then the text. Its rolling log-likelihood with
    `max_length=L` and `add_bos_token=False` gives the nats of window=L+1 and stride=L on them,
    if L divides the number of tokens in the text. Otherwise its last window has more context.

    Args:
        window: tokens in a window, those of `leading` among them.
        stride: tokens of the text between the starts of two windows; lowered to the number that a
            window holds beside `leading`.
        leading: ids that every window begins with; they are never scored.

    Raises:
        PPFError: tokens would be left out, or there is none to score.

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
