"""Measures candidates, uniform pruning and the allocation rules on the real model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ppf.agents import Candidates, Objective
from ppf.errors import PPFError
from ppf.ranks import Ranks, on_rank_0
from ppf.space import new_policies

Measure = Callable[[Int[Tensor, "n sites"]], Float[Tensor, " n"]]
"""Returns the policies' log-perplexities on the real model, nats per token; may be inf or NaN."""

CANDIDATE = "candidate"
_FIELDS = ("kept", "mean", "std", "measured")


@dataclass(frozen=True)
class Verification:
    """Policies of a round: uniform pruning, then the rules, then its proposals, best first.

    Args:
        names: for each policy, all of its sources: "uniform", names of rules, `CANDIDATE`.
        kept: units that each site keeps.
        mean: predicted log-perplexity, nats per token.
        std: standard deviation of the prediction, nats per token.
        measured: log-perplexity on the real model, nats per token; may be inf or NaN.
    """

    names: tuple[tuple[str, ...], ...]
    kept: Int[Tensor, "n sites"]
    mean: Float[Tensor, " n"]
    std: Float[Tensor, " n"]
    measured: Float[Tensor, " n"]

    def by_loss(self) -> Int[Tensor, "n sites"]:
        """The policies, lowest measured log-perplexity first."""
        return self.kept[self.measured.nan_to_num(torch.inf).argsort()]

    @property
    def proposed(self) -> Bool[Tensor, " n"]:
        """Whether only the agent proposed the policy, neither uniform pruning nor a rule."""
        return torch.tensor([first == CANDIDATE for first, *_ in self.names])

    def eligible(self, only_proposals: bool) -> Bool[Tensor, " n"]:
        """Whether each policy can be the result of a search.

        Raises:
            PPFError: only proposals can be, and there are none.
        """
        own = torch.tensor([CANDIDATE in names for names in self.names])
        if only_proposals and not own.any():
            raise PPFError("the agent proposed no new policy: give search.proposals_only=false.")
        return own if only_proposals else torch.ones_like(own)

    @classmethod
    def merge(cls, rounds: Sequence["Verification"]) -> "Verification":
        """All policies of the rounds, each once, with its prediction before it was measured."""
        rows: dict[tuple[int, ...], tuple[Tensor, ...]] = {}
        for part in rounds:
            for row in zip(*(getattr(part, field) for field in _FIELDS), strict=True):
                rows.setdefault(tuple(row[0].tolist()), row)
        kept = torch.cat([part.kept for part in rounds])
        names = _joined(kept, [names for part in rounds for names in part.names])
        columns = zip(*rows.values(), strict=True)
        return cls(names, *(torch.stack(column) for column in columns))


def predict(
    candidates: Candidates, objective: Objective, ranks: Ranks | None = None
) -> Verification:
    """The candidates and the baselines with their predictions, not measured yet.

    Args:
        ranks: processes that share the search; all get the policies and predictions of rank 0.
    """
    names, *predicted = on_rank_0(ranks, partial(_predicted, candidates, objective))
    kept, mean, std = (values.to(objective.device) for values in predicted)
    return Verification(names, kept, mean, std, torch.full_like(mean, torch.nan))


def verify(predicted: Verification, measure: Measure, ratio: float) -> Verification:
    """Measures predicted policies on the real model.

    Args:
        ratio: the pruning ratio, for the error.

    Raises:
        PPFError: no measured log-perplexity is finite.
    """
    measured = measure(predicted.kept).to(predicted.mean.device)
    if not measured.isfinite().any():
        raise PPFError(
            f"none of {len(measured)} measured policies has a finite perplexity at"
            f" ratio={ratio}: give a smaller ratio."
        )
    return replace(predicted, measured=measured)


def _predicted(
    candidates: Candidates, objective: Objective
) -> tuple[tuple[tuple[str, ...], ...], Tensor, Tensor, Tensor]:
    """Names, policies and predictions of the policies to measure, each policy once."""
    kept = torch.cat([objective.baselines(), candidates.kept])
    named = ["uniform", *objective.rules, *[CANDIDATE] * len(candidates)]
    names = _joined(kept, [(name,) for name in named])
    kept = new_policies(kept, kept[:0])
    mean, std = objective.predictor.predict(kept)
    return names, kept.cpu(), mean.cpu(), std.cpu()


def _joined(
    kept: Int[Tensor, "n sites"], named: Sequence[tuple[str, ...]]
) -> tuple[tuple[str, ...], ...]:
    """The names of each policy, in the order in which the policies first occur."""
    found: dict[tuple[int, ...], dict[str, None]] = {}
    for policy, names in zip(kept.tolist(), named, strict=True):
        found.setdefault(tuple(policy), {}).update(dict.fromkeys(names))
    return tuple(map(tuple, found.values()))
