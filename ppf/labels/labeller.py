"""Measures the loss of policies on the labelling part of a text."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ppf.errors import PPFError, out_of_memory
from ppf.llm import (
    LanguageModel,
    LayerCalls,
    OutputHead,
    fast_attention,
    output_head,
    summed_nll,
)
from ppf.progress import say
from ppf.space import Space

T = TypeVar("T")
_HEAD_ROWS = 128  # rows of one block of logits, which fits the CPU cache


class Prunes(Protocol):
    """Applies the policies of a space to a model, as `LivePruner` does."""

    @property
    def space(self) -> Space: ...

    def apply_by_layer(self, kept: Sequence[int]) -> Iterator[int]: ...


class LabelScores(NamedTuple):
    """Measured scores of a policy on the labelling text.

    Args:
        nll: mean negative log-likelihood, nats per token; not finite if the model breaks down.
        kl: mean KL divergence of the next-token distribution from the dense model's, nats per
            token; None if it is not measured.
    """

    nll: float
    kl: float | None


class TopTokens(NamedTuple):
    """The most probable next tokens of the dense model at every scored position.

    All other tokens are merged into one outcome. Divergences are therefore lower bounds.
    """

    ids: Int[Tensor, "positions top"]
    log_probs: Float[Tensor, "positions top"]

    def divergence(self, log_probs: Float[Tensor, "positions vocabulary"]) -> Float[Tensor, ""]:
        """KL(dense ‖ pruned) in nats, summed over the positions.

        Args:
            log_probs: log-probabilities of the pruned model.
        """
        pruned = _append_rest(log_probs.gather(1, self.ids))
        return nn.functional.kl_div(
            pruned, _append_rest(self.log_probs), reduction="sum", log_target=True
        )


@dataclass
class _Batch:
    """A batch of windows, and what the labeller stores for it between policies.

    Args:
        ids: the windows.
        scored: the scored tokens of each window, and the token before them.
        dense: the most probable tokens of the dense model; None: not computed yet.
        calls: the arguments of the layers; None: not recorded yet.
        states: inputs of each layer under the last policy, and the output of the last layer.
    """

    ids: Int[Tensor, "windows window"]
    scored: Int[Tensor, "windows rest"]
    dense: TopTokens | None = None
    calls: LayerCalls | None = None
    states: list[Float[Tensor, "windows window hidden"]] = field(default_factory=list)


class Labeller:
    """Measures the scores of policies on fixed windows.

    The layers before the first one that differs from the last policy are not run again, because
    their hidden states are stored. Lexicographic order of the policies therefore saves most time.
    The scores do not depend on the order.

    Args:
        lm: the model.
        pruner: applies policies to the model.
        windows: windows of the labelling part.
        batch: number of windows in a batch; it is halved when memory runs out.
        context: number of tokens at the start of each window that are read but not scored, at
            least 1.
        kl_top_k: number of the dense model's most probable tokens that the KL divergence is
            computed on; 0: it is not measured.

    Raises:
        PPFError: `context` is below 1 or not shorter than a window.
    """

    def __init__(
        self,
        lm: LanguageModel,
        pruner: Prunes,
        windows: Int[Tensor, "windows window"],
        *,
        batch: int,
        context: int = 1,
        kl_top_k: int = 0,
    ) -> None:
        if not 1 <= context < windows.shape[1]:
            raise PPFError(
                f"labels.context={context} must be at least 1 and leave tokens to score in windows"
                f" of {windows.shape[1]}."
            )
        self.lm, self.pruner = lm, pruner
        self.windows = windows.to(lm.device)
        self.layers = lm.adapter.layers(lm.model)
        self._norm = lm.adapter.final_norm(lm.model)
        self._head = output_head(lm.model)
        self._layer_of = [site.layer for site in pruner.space.sites]
        self._context, self._kl_top_k = context, kl_top_k
        self._reset(batch)

    @torch.inference_mode()
    def score(self, kept: Sequence[int]) -> LabelScores:
        """The scores of a policy.

        Args:
            kept: number of units that each site keeps.

        Raises:
            OutOfMemoryError, RuntimeError: memory does not suffice for a batch of one window.
        """
        try:
            return self._score([int(k) for k in kept])
        except Exception as error:
            size = len(self._batches[0].ids)
            if size == 1 or not out_of_memory(error):
                raise
        # The exception, which keeps the failed batch in memory, is gone here.
        say(f"Out of memory: the batch is halved to {size // 2} windows.")
        self._reset(size // 2)
        torch.cuda.empty_cache()
        return self.score(kept)

    def _reset(self, batch: int) -> None:
        start = self._context - 1
        self._batches = [_Batch(ids, ids[:, start:]) for ids in self.windows.split(batch)]
        self._last: list[int] | None = None  # the policy that the stored states are of

    def _score(self, kept: list[int]) -> LabelScores:
        if self._kl_top_k and self._batches[0].dense is None:
            self._run(self.pruner.space.dense.tolist(), self._store_top_tokens)
        nll, kl = torch.stack(self._run(kept, self._losses)).sum(0).tolist()
        windows, window = self.windows.shape
        positions = windows * (window - self._context)
        return LabelScores(nll / positions, kl / positions if self._kl_top_k else None)

    def _run(self, kept: list[int], read: Callable[[_Batch, Tensor], T]) -> list[T]:
        """Applies a policy, and calls `read` with each batch and its last hidden states."""
        first = self._first_changed(kept)
        self._last = None  # after an interruption, the stored states belong to no policy
        self._forward(kept, first)
        results = [read(batch, self._scored_states(batch)) for batch in self._batches]
        self._last = kept
        return results

    def _first_changed(self, kept: list[int]) -> int:
        if self._last is None:
            return 0
        changed = (
            layer
            for layer, now, before in zip(self._layer_of, kept, self._last, strict=True)
            if now != before
        )
        return min(changed, default=len(self.layers))

    def _scored_states(self, batch: _Batch) -> Float[Tensor, "windows rest hidden"]:
        """The last hidden states of the tokens in `batch.scored`, after the final norm."""
        return self._norm(batch.states[-1][:, self._context - 1 :])

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

    def _losses(self, batch: _Batch, hidden: Tensor) -> Float[Tensor, "2"]:
        """Negative log-likelihood and KL divergence from the dense model, summed, in nats."""
        if batch.dense is None:
            nll = summed_nll(self._head, hidden, batch.scored)
            return torch.stack([nll, torch.zeros_like(nll)])
        sums = []
        parts = zip(*(part.split(_HEAD_ROWS) for part in batch.dense), strict=True)
        chunks = _logits(self._head, hidden, batch.scored)
        for (logits, target), dense in zip(chunks, parts, strict=True):
            log_probs = logits.log_softmax(-1)
            nll = nn.functional.nll_loss(log_probs, target, reduction="sum")
            sums.append(torch.stack([nll, TopTokens(*dense).divergence(log_probs)]))
        return torch.stack(sums).double().sum(0).cpu()

    def _store_top_tokens(self, batch: _Batch, hidden: Tensor) -> None:
        """Stores the most probable tokens in the batch; the dense policy must be applied."""
        tops = [
            logits.log_softmax(-1).topk(min(self._kl_top_k, self._head.tokens))
            for logits, _ in _logits(self._head, hidden, batch.scored)
        ]
        batch.dense = TopTokens(
            torch.cat([top.indices for top in tops]), torch.cat([top.values for top in tops])
        )


def _logits(
    head: OutputHead, hidden: Tensor, ids: Tensor
) -> Iterator[tuple[Float[Tensor, "rows vocabulary"], Int[Tensor, " rows"]]]:
    """Blocks of logits in float32, each with the tokens that follow in the text."""
    rows, targets = hidden[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    for some, target in zip(rows.split(_HEAD_ROWS), targets.split(_HEAD_ROWS), strict=True):
        yield head(some).float(), target


def _append_rest(log_probs: Float[Tensor, "positions top"]) -> Float[Tensor, "positions outcomes"]:
    """Appends a column with the log-probability of all other tokens together."""
    rest = (1 - log_probs.exp().sum(1, keepdim=True)).clamp_min(_LEAST).log()
    return torch.cat([log_probs, rest], 1)


_LEAST = 1e-7  # smallest probability; differences from 1 in float32 are not finer
