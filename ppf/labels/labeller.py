"""Measures the loss of policies on the labelling part of a text."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppf.errors import out_of_memory
from ppf.llm import (
    LanguageModel,
    LayerCalls,
    fast_attention,
    output_head,
    scored_tokens,
    window_nll,
)
from ppf.progress import say
from ppf.space import Space


class Prunes(Protocol):
    """Applies the policies of a space to a model, as `LivePruner` does."""

    @property
    def space(self) -> Space: ...

    def apply_by_layer(self, kept: Sequence[int]) -> Iterator[int]: ...


@dataclass
class _Batch:
    """A batch of windows, and what the labeller stores for it between policies.

    Args:
        ids: the windows.
        calls: the arguments of the layers; None: not recorded yet.
        states: inputs of each layer under the last policy, and the output of the last layer.
    """

    ids: Int[Tensor, "windows window"]
    calls: LayerCalls | None = None
    states: list[Float[Tensor, "windows window hidden"]] = field(default_factory=list)


class Labeller:
    """Measures the loss of policies on fixed windows.

    The layers before the first one that differs from the last policy are not run again, because
    their hidden states are stored. Lexicographic order of the policies therefore saves most time.
    The losses do not depend on the order.

    Args:
        lm: the model.
        pruner: applies policies to the model.
        windows: windows of the labelling part.
        batch: number of windows in a batch; it is halved when memory runs out.
    """

    def __init__(
        self,
        lm: LanguageModel,
        pruner: Prunes,
        windows: Int[Tensor, "windows window"],
        *,
        batch: int,
    ) -> None:
        self.lm, self.pruner = lm, pruner
        self.windows = windows.to(lm.device)
        self.layers = lm.adapter.layers(lm.model)
        self._norm = lm.adapter.final_norm(lm.model)
        self._head = output_head(lm.model)
        self._layer_of = [site.layer for site in pruner.space.sites]
        self._scored = scored_tokens(self.windows) / len(windows)  # in a window
        self._measured: dict[tuple[int, ...], Float[Tensor, " windows"]] = {}
        self._reset(batch)

    def score(self, kept: Sequence[int]) -> float:
        """Mean negative log-likelihood of a policy, nats per token; it may not be finite.

        Args:
            kept: number of units that each site keeps.

        Raises:
            OutOfMemoryError, RuntimeError: memory does not suffice for a batch of one window.
        """
        policy = tuple(map(int, kept))
        losses = self._measured[policy] = self._batched(list(policy))
        return float(losses.mean())

    def by_window(self, kept: Sequence[int]) -> Float[Tensor, " windows"]:
        """The losses of the windows, whose mean is `score`.

        Policies that were scored before are not measured again.
        """
        if (policy := tuple(map(int, kept))) not in self._measured:
            self.score(policy)
        return self._measured[policy]

    @torch.inference_mode()
    def _batched(self, kept: list[int]) -> Float[Tensor, " windows"]:
        try:
            return self._score(kept)
        except Exception as error:
            size = len(self._batches[0].ids)
            if size == 1 or not out_of_memory(error):
                raise
        # The exception, which keeps the failed batch in memory, is gone here.
        say(f"Out of memory: the batch is halved to {size // 2} windows.")
        self._reset(size // 2)
        torch.cuda.empty_cache()
        return self._batched(kept)

    def _reset(self, batch: int) -> None:
        self._batches = [_Batch(ids) for ids in self.windows.split(batch)]
        self._last: list[int] | None = None  # the policy that the stored states are of

    def _score(self, kept: list[int]) -> Float[Tensor, " windows"]:
        first, last = 0, self._last
        if last is not None:
            pairs = zip(self._layer_of, kept, last, strict=True)
            first = min((i for i, now, old in pairs if now != old), default=len(self.layers))
        self._last = None  # after an interruption, the stored states belong to no policy
        self._forward(kept, first)
        states = (self._norm(batch.states[-1]) for batch in self._batches)
        scored = zip(states, self._batches, strict=True)
        sums = [window_nll(self._head, x, batch.ids) for x, batch in scored]
        self._last = kept
        return torch.cat(sums) / self._scored

    def _forward(self, kept: list[int], first: int) -> None:
        """Applies a policy layer by layer and stores the states; runs layers from `first` on."""
        for batch in self._batches:
            if batch.calls is None:
                batch.calls = LayerCalls.record(self.lm, batch.ids)
                batch.states = [batch.calls.inputs]
            del batch.states[first + 1 :]
        with fast_attention(self.lm.model):
            for index in self.pruner.apply_by_layer(kept):
                if index >= first:
                    self._run_layer(index)

    def _run_layer(self, index: int) -> None:
        with self.lm.resident(index) as layer:
            for batch in self._batches:
                assert batch.calls
                call = batch.calls.keywords[index]
                batch.states.append(layer(batch.states[-1], **call))
