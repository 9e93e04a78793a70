"""Next-token losses from hidden states, without logits of the whole vocabulary in memory."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppf.llm.head import OutputHead

_ROWS, _VOCABULARY = 1024, 2048  # whose logits stay in a CPU's cache


def summed_nll(
    head: OutputHead,
    hidden: Float[Tensor, "windows window width"],
    ids: Int[Tensor, "windows window"],
) -> Float[Tensor, ""]:
    """Summed negative log-likelihood of each next token inside its window, nats, on the CPU.

    A CPU makes the logits for a part of the rows and of the vocabulary at a time, so that they stay
    in its cache; other devices split the rows only. Losses are computed in float32 and summed in
    float64.
    """
    step = _VOCABULARY if hidden.device.type == "cpu" else head.tokens
    losses = []
    rows, targets = hidden[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    for some, target in zip(rows.split(_ROWS), targets.split(_ROWS), strict=True):
        sums = [
            _log_sum_exp(head(some, slice(start, start + step)).float())
            for start in range(0, head.tokens, step)
        ]
        losses.append((torch.stack(sums).logsumexp(0) - head.of(some, target)).double().sum())
    return torch.stack(losses).sum().cpu()


def _log_sum_exp(logits: Float[Tensor, "rows tokens"]) -> Float[Tensor, " rows"]:
    """Over the tokens; overwrites the logits."""
    largest = logits.amax(1, keepdim=True)
    return logits.sub_(largest).exp_().sum(1).log() + largest[:, 0]
