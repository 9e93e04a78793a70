"""The labeller: what the real pruned model scores on the labelling text."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ppf.errors import PPFError
from ppf.llm import (
    LanguageModel,
    LayerCalls,
    OutputHead,
    fast_attention,
    output_head,
    summed_nll,
)
from ppf.progress import say
from ppf.pruning import LivePruner

T = TypeVar("T")
_HEAD_ROWS = 128  # whose logits over the whole vocabulary stay in cache


class Score(NamedTuple):
    """What a policy scores on the labelling text.

    Args:
        nll: mean negative log-likelihood, nats per token; not finite where the model breaks.
        kl: mean divergence from the dense model's next-token distribution, nats per token, or
            None where it is not asked for.
    """

    nll: float
    kl: float | None


class Likeliest(NamedTuple):
    """The dense model's likeliest next tokens at every scored position.

    All other tokens are taken as one, so that a divergence from it is a lower bound.
    """

    ids: Int[Tensor, "positions top"]
    log_probs: Float[Tensor, "positions top"]

    def divergence(self, log_probs: Float[Tensor, "positions vocabulary"]) -> Float[Tensor, ""]:
        """Summed KL(dense ‖ pruned), nats."""
        pruned = _with_rest(log_probs.gather(1, self.ids))
        return nn.functional.kl_div(
            pruned, _with_rest(self.log_probs), reduction="sum", log_target=True
        )


@dataclass
class _Batch:
    """Some windows, how layers are called on them, and the states that entered each one last.

    Args:
        scored: the ids that are scored, and the one before them.
    """

    ids: Int[Tensor, "windows window"]
    scored: Int[Tensor, "windows rest"]
    dense: Likeliest | None = None
    calls: LayerCalls | None = None
    trail: list[Float[Tensor, "windows window hidden"]] = field(default_factory=list)


class Labeller:
    """Scores policies one after another on fixed windows.

    Hidden states are kept from one policy to the next, so that layers before the first changed one
    are not run again: label policies in lexicographic order to gain most. The same policy gives
    the same number in any order.

    Args:
        windows: of the labelling part.
        batch: windows scored at a time; halved when memory does not suffice.
        context: tokens at the start of each window that are read but not scored; at least the
            first. With hardly a token before them, what these lose is far less smooth a function
            of the policy than what all others do.
        kl_top_k: likeliest tokens of the dense model that the divergence from it looks at; 0: none
            is measured.

    Raises:
        PPFError: windows have no token beyond the context.
    """

    def __init__(
        self,
        lm: LanguageModel,
        pruner: LivePruner,
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
        self._start(batch)

    @torch.inference_mode()
    def score(self, kept: Sequence[int]) -> Score:
        """What the policy scores."""
        try:
            return self._score([int(k) for k in kept])
        except torch.OutOfMemoryError:
            size = len(self._batches[0].ids)
            if size == 1:
                raise
            say(f"Out of memory: going on with {size // 2} windows at a time.")
            self._start(size // 2)
            torch.cuda.empty_cache()
            return self.score(kept)

    def _start(self, batch: int) -> None:
        start = self._context - 1
        self._batches = [_Batch(ids, ids[:, start:]) for ids in self.windows.split(batch)]
        self._scored: list[int] | None = None

    def _score(self, kept: list[int]) -> Score:
        if self._kl_top_k and self._batches[0].dense is None:
            self._run(self.pruner.space.dense.tolist(), self._remember)
        nll, kl = torch.stack(self._run(kept, self._losses)).sum(0).tolist()
        windows, window = self.windows.shape
        positions = windows * (window - self._context)
        return Score(nll / positions, kl / positions if self._kl_top_k else None)

    def _run(self, kept: list[int], read: Callable[[_Batch, Tensor], T]) -> list[T]:
        """What `read` makes of each batch and its last hidden states under the policy."""
        first = self._first_changed(kept)
        self._scored = None  # the trail is not to be trusted if this policy is interrupted
        self.pruner.apply(kept)
        answers = [read(batch, self._told(batch, first)) for batch in self._batches]
        self._scored = kept
        return answers

    def _first_changed(self, kept: list[int]) -> int:
        if self._scored is None:
            return 0
        changed = (
            layer
            for layer, now, before in zip(self._layer_of, kept, self._scored, strict=True)
            if now != before
        )
        return min(changed, default=len(self.layers))

    def _told(self, batch: _Batch, first: int) -> Float[Tensor, "windows rest hidden"]:
        """The last hidden states of the tokens that are scored, and of the one before them."""
        return self._norm(self._forward(batch, first)[:, self._context - 1 :])

    def _forward(self, batch: _Batch, first: int) -> Float[Tensor, "windows window hidden"]:
        """The states behind the last layer, the layers before `first` as they were."""
        if batch.calls is None:
            batch.calls = LayerCalls.record(self.lm, batch.ids)
            batch.trail = [batch.calls.inputs]
        del batch.trail[first + 1 :]
        with fast_attention(self.lm.model):
            for layer, call in zip(self.layers[first:], batch.calls.keywords[first:], strict=True):
                batch.trail.append(layer(batch.trail[-1], **call))
        return batch.trail[-1]

    def _losses(self, batch: _Batch, hidden: Tensor) -> Float[Tensor, "2"]:
        """Summed negative log-likelihood and divergence from the dense model, nats."""
        if batch.dense is None:
            nll = summed_nll(self._head, hidden, batch.scored)
            return torch.stack([nll, torch.zeros_like(nll)])
        sums = []
        parts = zip(*(part.split(_HEAD_ROWS) for part in batch.dense), strict=True)
        chunks = _logits(self._head, hidden, batch.scored)
        for (logits, target), dense in zip(chunks, parts, strict=True):
            log_probs = logits.log_softmax(-1)
            nll = nn.functional.nll_loss(log_probs, target, reduction="sum")
            sums.append(torch.stack([nll, Likeliest(*dense).divergence(log_probs)]))
        return torch.stack(sums).double().sum(0).cpu()

    def _remember(self, batch: _Batch, hidden: Tensor) -> None:
        """Keeps the dense model's likeliest tokens."""
        tops = [
            logits.log_softmax(-1).topk(self._kl_top_k)
            for logits, _ in _logits(self._head, hidden, batch.scored)
        ]
        batch.dense = Likeliest(
            torch.cat([top.indices for top in tops]), torch.cat([top.values for top in tops])
        )


def _logits(
    head: OutputHead, hidden: Tensor, ids: Tensor
) -> Iterator[tuple[Float[Tensor, "rows vocabulary"], Int[Tensor, " rows"]]]:
    """Logits in float32 and the tokens that really follow, a few rows at a time."""
    rows, targets = hidden[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
    for some, target in zip(rows.split(_HEAD_ROWS), targets.split(_HEAD_ROWS), strict=True):
        yield head(some).float(), target


def _with_rest(log_probs: Float[Tensor, "positions top"]) -> Float[Tensor, "positions outcomes"]:
    """The log-probability of all other tokens as one more column."""
    rest = (1 - log_probs.exp().sum(1, keepdim=True)).clamp_min(_LEAST).log()
    return torch.cat([log_probs, rest], 1)


_LEAST = 1e-7  # probability; what float32 can tell from nothing
