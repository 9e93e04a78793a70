"""Next-token losses from hidden states, without all logits in memory at once."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppf.llm.head import OutputHead

_ROWS, _VOCABULARY = 1024, 2048  # sizes of one block of logits, which fits the CPU cache


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
        ids: tokens; those after the first of each window are scored.

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
        losses.append((torch.stack(sums).logsumexp(0) - head.of(some, target)).double())
    return torch.cat(losses).view(len(ids), -1).sum(1).cpu()
