"""What the predictor proposes, measured on the real model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ppf.agents import Candidates, Objective
from ppf.errors import PPFError
from ppf.ranks import Ranks, on_rank_0

Measure = Callable[[Int[Tensor, "n sites"]], Float[Tensor, " n"]]
"""Policies to their log-perplexity on the real model, nats per token; may give inf or nan."""

CANDIDATE = "candidate"
_FIELDS = ("kept", "mean", "std", "measured")


@dataclass(frozen=True)
class Verification:
    """Measured policies: uniform pruning first, then the rules, then the candidates.

    Candidates stand best predicted first.

    Args:
        names: "uniform", the rule's, or `CANDIDATE`.
        mean: predicted log-perplexity, nats per token.
        std: standard deviation of the prediction.
        measured: log-perplexity on the real model, nats per token; not finite where the model
            broke.
    """

    names: tuple[str, ...]
    kept: Int[Tensor, "n sites"]
    mean: Float[Tensor, " n"]
    std: Float[Tensor, " n"]
    measured: Float[Tensor, " n"]

    @property
    def best(self) -> int:
        """The row that measured best."""
        return int(self.measured.nan_to_num(torch.inf).argmin())

    @property
    def least(self) -> float:
        """Log-perplexity of the best one, nats per token."""
        return float(self.measured[self.best])

    @property
    def proposed(self) -> Bool[Tensor, " n"]:
        """Which policies a search proposed."""
        return torch.tensor([name == CANDIDATE for name in self.names])

    @classmethod
    def merge(cls, rounds: Sequence["Verification"]) -> "Verification":
        """All rounds' policies once, each with the prediction made before it was measured."""
        first: dict[tuple[int, ...], tuple[str, tuple[Tensor, ...]]] = {}
        for part in rounds:
            for name, row in zip(part.names, part._rows(), strict=True):
                first.setdefault(tuple(row[0].tolist()), (name, row))
        names, rows = zip(*first.values(), strict=True)
        return cls(names, *(torch.stack(column) for column in zip(*rows, strict=True)))

    def _rows(self) -> Iterator[tuple[Tensor, ...]]:
        return zip(*(getattr(self, field) for field in _FIELDS), strict=True)


def verify(
    candidates: Candidates, objective: Objective, measure: Measure, ranks: Ranks | None = None
) -> Verification:
    """Measures the candidates, uniform pruning and the rules: none reports worse than it has seen.

    Args:
        ranks: processes that measure together; rank 0's policies and predictions count.

    Raises:
        PPFError: none of them has a finite log-perplexity.
    """
    names, *predicted = on_rank_0(ranks, partial(_predicted, candidates, objective))
    kept, mean, std = (values.to(objective.device) for values in predicted)
    measured = measure(kept).to(mean.device)
    if not measured.isfinite().any():
        raise PPFError(
            f"all {len(kept)} measured policies broke the model at ratio={objective.ratio}:"
            " give a smaller ratio."
        )
    return Verification(names, kept, mean, std, measured)


def _predicted(
    candidates: Candidates, objective: Objective
) -> tuple[tuple[str, ...], Tensor, Tensor, Tensor]:
    """Names, policies and predictions of what is to be measured, each policy once."""
    kept = torch.cat([objective.uniform(), objective.ruled(), candidates.kept])
    named = ["uniform", *objective.rules, *[CANDIDATE] * len(candidates)]
    first = {tuple(row): place for place, row in reversed(list(enumerate(kept.tolist())))}
    places = sorted(first.values())
    mean, std = objective.predictor.predict(kept[places])
    names = tuple(named[place] for place in places)
    return names, kept[places].cpu(), mean.cpu(), std.cpu()
