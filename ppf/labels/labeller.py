"""The labeller: what the real pruned model scores on the labelling text."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ppf.llm import LanguageModel, output_head
from ppf.progress import say
from ppf.pruning import LivePruner

_HEAD_ROWS = 64  # logits of so many tokens stay in cache


@dataclass
class _Batch:
    """Some windows, how layers are called on them, and the states that entered each one last."""

    ids: Int[Tensor, "windows window"]
    calls: list[dict[str, Any]] = field(default_factory=list)
    trail: list[Float[Tensor, "windows window hidden"]] = field(default_factory=list)


class Labeller:
    """Scores policies one after another on fixed windows.

    Hidden states are kept from one policy to the next, so that layers before the first changed
    one are not run
    again: label policies in lexicographic order to gain most. The same policy gives the same
        number in any order.

    Args:
        windows: of the labelling part.
        batch: windows scored at a time; halved when memory does not suffice.
    """

    def __init__(
        self,
        lm: LanguageModel,
        pruner: LivePruner,
        windows: Int[Tensor, "windows window"],
        *,
        batch: int,
    ) -> None:
        self.lm, self.pruner = lm, pruner
        self.windows = windows.to(lm.device)
        self.layers = lm.adapter.layers(lm.model)
        self._norm = lm.adapter.final_norm(lm.model)
        self._layer_of = [site.layer for site in pruner.space.sites]
        self._start(batch)

    @torch.inference_mode()
    def nll(self, kept: Sequence[int]) -> float:
        """Mean negative log-likelihood of the policy, nats per token; kept if it is not finite."""
        try:
            return self._nll([int(k) for k in kept])
        except torch.OutOfMemoryError:
            size = len(self._batches[0].ids)
            if size == 1:
                raise
            say(f"Out of memory: going on with {size // 2} windows at a time.")
            self._start(size // 2)
            torch.cuda.empty_cache()
            return self.nll(kept)

    def _start(self, batch: int) -> None:
        self._batches = [_Batch(ids) for ids in self.windows.split(batch)]
        self._scored: list[int] | None = None

    def _nll(self, kept: list[int]) -> float:
        first = self._first_changed(kept)
        self._scored = None  # the trail is not to be trusted if this policy is interrupted
        self.pruner.apply(kept)
        total = sum((self._score(batch, first) for batch in self._batches), torch.zeros(()))
        self._scored = kept
        windows, window = self.windows.shape
        return float(total) / (windows * (window - 1))

    def _first_changed(self, kept: list[int]) -> int:
        if self._scored is None:
            return 0
        changed = (
            layer
            for layer, now, before in zip(self._layer_of, kept, self._scored, strict=True)
            if now != before
        )
        return min(changed, default=len(self.layers))

    def _score(self, batch: _Batch, first: int) -> Tensor:
        if not batch.calls:
            _record(self.lm.model.get_decoder(), self.layers, batch)
        del batch.trail[first + 1 :]
        for layer, call in zip(self.layers[first:], batch.calls[first:], strict=True):
            batch.trail.append(layer(batch.trail[-1], **call))
        hidden = self._norm(batch.trail[-1])
        return summed_nll(output_head(self.lm.model), hidden, batch.ids)


def summed_nll(
    head: Callable[[Tensor], Tensor],
    hidden: Float[Tensor, "windows window width"],
    ids: Int[Tensor, "windows window"],
) -> Float[Tensor, ""]:
    """Summed negative log-likelihood of each next token inside its window, nats, on the CPU.

    The logits are made in float32 for a few rows at a time, so that they stay in the processor's
    cache.
    """
    rows, targets = hidden[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    losses = [
        nn.functional.cross_entropy(head(some).float(), target, reduction="sum")
        for some, target in zip(rows.split(_HEAD_ROWS), targets.split(_HEAD_ROWS), strict=True)
    ]
    return torch.stack(losses).double().sum().cpu()


def _record(decoder: nn.Module, layers: nn.ModuleList, batch: _Batch) -> None:
    """Learns from one run how layers are called: masks and positions depend on no policy."""

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], keywords: dict[str, Any]) -> None:
        if not batch.calls:
            batch.trail.append(inputs[0])
        batch.calls.append(keywords)

    handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
    try:
        decoder(batch.ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
