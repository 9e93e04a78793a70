"""Results of a recovery."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class RecoveryScore:
    """Mean negative log-likelihoods before and after recovery training, nats per token.

    Args:
        ratio: the pruning ratio.
    """

    ratio: float
    dense: float
    pruned: float
    recovered: float

    @property
    def won_back(self) -> float | None:
        """Share of the nats lost by pruning that recovery regained; None: pruning lost none."""
        lost = self.pruned - self.dense
        return (self.pruned - self.recovered) / lost if lost > 0 else None

    def record(self) -> dict[str, float | None]:
        """All values, for JSON files."""
        return asdict(self) | {"won_back": self.won_back}


@dataclass(frozen=True)
class Recovered:
    """The result of a recovery.

    Args:
        scores: on the validation part, one for each pruning ratio, ascending.
        test: the same on the test part; empty: not measured.
        tokens: that the training read; the weights may be those of an earlier validation.
        minutes: of training.
        curve: tokens read, and the mean negative log-likelihood on the validation part, nats per
            token; with several ratios their mean.
    """

    scores: Sequence[RecoveryScore]
    test: Sequence[RecoveryScore]
    tokens: int
    minutes: float
    curve: Sequence[tuple[int, float]]
