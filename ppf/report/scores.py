"""Perplexities that say how they are known."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

_TWO_SIDED_95 = 1.96  # standard deviations


@dataclass(frozen=True)
class Score:
    """A mean negative log-likelihood, measured or predicted.

    Args:
        nll: nats per token.
        std: standard deviation of a prediction, nats per token; None: measured on the real model.
    """

    nll: float
    std: float | None = None

    @property
    def known(self) -> str:
        return "measured" if self.std is None else "predicted"

    @property
    def perplexity(self) -> float:
        return _exp(self.nll)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The perplexities that a prediction holds for likely (95 %); None where it is measured."""
        if self.std is None:
            return None
        reach = _TWO_SIDED_95 * self.std
        return _exp(self.nll - reach), _exp(self.nll + reach)

    def record(self) -> dict[str, Any]:
        """As JSON files hold it, with null for numbers that JSON does not have."""
        known: dict[str, Any] = {"nll": _finite(self.nll), "perplexity": _finite(self.perplexity)}
        if self.interval:
            known |= {"std": self.std, "interval_95": [_finite(end) for end in self.interval]}
        return known

    def __str__(self) -> str:
        if self.interval is None:
            return decimal(self.perplexity)
        low, high = self.interval
        return f"{decimal(self.perplexity)} ({decimal(low)}–{decimal(high)})"


@dataclass(frozen=True)
class Entry:
    """One policy of a table or a plot.

    Args:
        policy: the name that people know it by, as in "dense", "uniform", "PPF".
        ratio: share of the prunable parameters that it removes.
    """

    policy: str
    ratio: float
    measured: Score | None = None
    predicted: Score | None = None

    @property
    def scores(self) -> Sequence[Score]:
        """What is known of it, the measured score first."""
        return [score for score in (self.measured, self.predicted) if score]


def decimal(value: float) -> str:
    """A perplexity with about four significant digits, without an exponent while it can be read."""
    size = abs(value)
    if size < 100:
        return f"{value:.2f}"
    if size < 1000:
        return f"{value:.1f}"
    return f"{value:,.0f}" if size < 1e7 else f"{value:.3g}"


def percent(share: float) -> str:
    """A share in per cent, as in "30.1 %"."""
    return f"{100 * share:.1f} %"


def duration(seconds: float) -> str:
    """Seconds as people say them: "4.2 s", "3 min 05 s", "2 h 10 min"."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def _exp(nll: float) -> float:
    return float(torch.tensor(nll, dtype=torch.double).exp())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
