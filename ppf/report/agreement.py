"""Whether policies have the same ranking before and after recovery training."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import Any, NamedTuple

_FEWEST = 3  # policies
_NUMBERS = ("nll_pruned", "nll_recovered", "ratio")
_SAME = 0.01  # largest difference between ratios that count as one


class Agreement(NamedTuple):
    """Whether the losses of pruned models before and after recovery training rank them alike.

    Args:
        policies: number of policies.
        kendall: rank correlation of the losses before and after.
        regret: loss after training of the policy that is best before training, minus the lowest
            loss after training; nats per token.
    """

    policies: int
    kendall: float
    regret: float

    def __str__(self) -> str:
        return (
            f"The order of {self.policies} policies before and after training: Kendall"
            f" {self.kendall:.2f}. The best policy before training is"
            f" {self.regret:.4f} nats per token worse after training than the best one then."
        )


def agreement(rows: Sequence[Mapping[str, Any]]) -> Agreement | None:
    """Compares rows of `recover.py`, as in results.json. Losses are means over seeds.

    Returns:
        None if the rows have fewer than three policies, or several ratios or trainings.
    """
    known = [row for row in rows if all(isinstance(row.get(x), int | float) for x in _NUMBERS)]
    trainings = {(row.get("tune"), row.get("tokens")) for row in known}
    losses = defaultdict[Any, list[tuple[float, float]]](list)  # of each policy, for each seed
    for row in known:
        policy = row.get("policy") or row.get("path") or row["nll_pruned"]
        losses[policy].append((row["nll_pruned"], row["nll_recovered"]))
    pairs = [tuple(map(fmean, zip(*each, strict=True))) for each in losses.values()]
    ratios = [row["ratio"] for row in known]
    if len(trainings) != 1 or len(pairs) < _FEWEST:
        return None
    if max(ratios) - min(ratios) > _SAME:
        return None
    signs = [_sign(b[0] - a[0]) * _sign(b[1] - a[1]) for a, b in combinations(pairs, 2)]
    best = min(after for _, after in pairs)
    return Agreement(len(pairs), sum(signs) / len(signs), min(pairs)[1] - best)


def _sign(difference: float) -> int:
    return (difference > 0) - (difference < 0)
