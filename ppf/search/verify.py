"""What the predictor proposes, measured on the real model."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppf.agents import Candidates, Objective
from ppf.errors import PPFError

Measure = Callable[[Int[Tensor, "n sites"]], Float[Tensor, " n"]]
"""Policies to their log-perplexity on the real model, nats per token; may give inf or nan."""

_FIELDS = ("kept", "mean", "std", "measured")


@dataclass(frozen=True)
class Verification:
    """Measured policies: the uniform one first, then the candidates, best predicted first.

    Args:
        mean: predicted log-perplexity, nats per token.
        std: standard deviation of the prediction.
        measured: log-perplexity on the real model, nats per token; not finite where the model
            broke.
    """

    kept: Int[Tensor, "n sites"]
    mean: Float[Tensor, " n"]
    std: Float[Tensor, " n"]
    measured: Float[Tensor, " n"]

    @property
    def best(self) -> int:
        """The row that measured best."""
        return int(self.measured.nan_to_num(torch.inf).argmin())

    @classmethod
    def merge(cls, rounds: Sequence["Verification"]) -> "Verification":
        """All rounds' policies once, each with the prediction made before it was measured."""
        rows = [dict(zip(_FIELDS, row, strict=True)) for part in rounds for row in part._rows()]
        first: dict[tuple[int, ...], dict[str, Tensor]] = {}
        for row in rows:
            first.setdefault(tuple(row["kept"].tolist()), row)
        return cls(*(torch.stack([row[name] for row in first.values()]) for name in _FIELDS))

    def _rows(self) -> Iterator[tuple[Tensor, ...]]:
        return zip(self.kept, self.mean, self.std, self.measured, strict=True)


def verify(candidates: Candidates, objective: Objective, measure: Measure) -> Verification:
    """Measures the candidates and the uniform policy: no search reports worse than it has seen.

    Raises:
        PPFError: none of them has a finite log-perplexity.
    """
    reference = objective.uniform()
    others = candidates.kept[(candidates.kept != reference).any(1)]
    kept = torch.cat([reference, others])
    mean, std = objective.predictor.predict(kept)
    measured = measure(kept).to(mean.device)
    if not measured.isfinite().any():
        raise PPFError(
            f"all {len(kept)} measured policies broke the model at ratio={objective.ratio}:"
            " give a smaller ratio."
        )
    return Verification(kept, mean, std, measured)
