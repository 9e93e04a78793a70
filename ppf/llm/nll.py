"""Next-token losses from hidden states, without all logits in memory at once."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppf.llm.head import OutputHead
from ppf.llm.marked import tokens_of

_ROWS, _VOCABULARY = 1024, 2048  # sizes of one block of logits, which fits the CPU cache
_WHOLE = 128  # rows of a block of logits of all tokens, on a CPU; four times as many elsewhere


def window_nll(
    head: OutputHead,
    hidden: Float[Tensor, "windows window width"],
    ids: Int[Tensor, "windows window"],
) -> Float[Tensor, " windows"]:
    """Negative log-likelihood of the next tokens in nats, summed in each window, in float64.

    Logits are computed in blocks. On a CPU, a block spans some rows and some tokens of the
    vocabulary, so that it fits the cache. On other devices, a block spans the whole vocabulary.
    Each loss is computed in float32.

    Args:
        hidden: last hidden states.
        ids: marked tokens; those after the first of each window are scored, unless they are marked.

    Returns:
        The sums, on the CPU.
    """
    step = _VOCABULARY if hidden.device.type == "cpu" else head.tokens
    losses = []
    rows, targets = hidden[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    for some, target in zip(rows.split(_ROWS), targets.split(_ROWS), strict=True):
        sums = []
        for start in range(0, head.tokens, step):
            logits = head(some, slice(start, start + step)).float()
            largest = logits.amax(1, keepdim=True)
            sums.append(logits.sub_(largest).exp_().sum(1).log() + largest[:, 0])
        nll = torch.stack(sums).logsumexp(0) - head.of(some, tokens_of(target))
        losses.append(nll.double().where(target >= 0, 0.0))
    return torch.cat(losses).view(len(ids), -1).sum(1).cpu()


@torch.no_grad()
def slopes(
    head: OutputHead,
    hidden: Float[Tensor, "rows width"],
    targets: Int[Tensor, " rows"],
    generator: torch.Generator | None = None,
) -> Float[Tensor, "rows width"]:
    """Gradient of the summed cross-entropy (nats) with respect to the last hidden states.

    Logits are computed for some rows at a time, and not kept.

    Args:
        targets: marked token of each row; marked rows have the gradient 0.
        generator: it draws other tokens, from the head's own distribution.
    """
    size = _WHOLE if hidden.device.type == "cpu" else 4 * _WHOLE
    weight, found = head.linear.weight, []
    for start in range(0, len(hidden), size):
        part = slice(start, start + size)
        logits = head(hidden[part]).float()
        slope = logits.softmax(-1)
        chosen = draw(slope, generator) if generator else tokens_of(targets[part, None])
        slope.scatter_add_(1, chosen, -torch.ones_like(chosen, dtype=slope.dtype))
        if head.cap is not None:
            slope *= 1 - (logits / head.cap).square()
        gradient = slope.to(weight.dtype) @ weight
        found.append(gradient.masked_fill_(targets[part, None] < 0, 0.0))
    return torch.cat(found)


def draw(
    probabilities: Float[Tensor, "rows tokens"], generator: torch.Generator
) -> Int[Tensor, "rows 1"]:
    """One token for each row."""
    reached = probabilities.cumsum(-1)
    # torch.multinomial draws a number for each token of the vocabulary, on one core.
    part = torch.rand(len(reached), 1, generator=generator, device=reached.device)
    return torch.searchsorted(reached, part * reached[:, -1:])
