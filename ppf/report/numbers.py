"""Perplexities, measured or predicted, and how numbers are shown."""

import math
from dataclasses import dataclass
from typing import Any

import torch

_TWO_SIDED_95 = 1.96  # standard deviations


@dataclass(frozen=True)
class LogPerplexity:
    """A mean negative log-likelihood, measured or predicted.

    Args:
        nll: mean negative log-likelihood, nats per token.
        std: standard deviation of a prediction, nats per token; None: measured on the real model.
        std_error: standard error of a measurement over the windows, nats per token; None: unknown;
            NaN: of one window.
    """

    nll: float
    std: float | None = None
    std_error: float | None = None

    @property
    def perplexity(self) -> float:
        """exp(nll); infinite if it overflows."""
        return _exp(self.nll)

    def record(self) -> dict[str, Any]:
        """The values for a JSON file; numbers that are not finite become null."""
        known: dict[str, Any] = {"nll": _finite(self.nll), "perplexity": _finite(self.perplexity)}
        if self.std is not None:
            reach = _TWO_SIDED_95 * self.std
            ends = _exp(self.nll - reach), _exp(self.nll + reach)
            known |= {"std": self.std, "interval_95": [_finite(end) for end in ends]}
        if self.std_error is not None and math.isfinite(self.std_error):
            known["std_error"] = self.std_error
        return known


def decimal(value: float | None) -> str:
    """A perplexity with three to seven digits; from 10⁷ on with an exponent; None: infinite."""
    if value is None:
        return "inf"
    if (size := abs(value)) < 100:
        return f"{value:.2f}"
    if size < 1000:
        return f"{value:.1f}"
    return f"{value:,.0f}" if size < 1e7 else f"{value:.3g}"


def percent(share: float) -> str:
    """A share in per cent, for example "30.1 %"."""
    return f"{100 * share:.1f} %"


def signed_percent(share: float) -> str:
    """A change in per cent with its sign, for example "−23.4 %"."""
    return f"{100 * share:+.1f} %".replace("-", "−")


def mebibytes(count: int) -> str:
    """A size, for example "256.6 MiB"."""
    return f"{count / 2**20:,.1f} MiB"


def duration(seconds: float) -> str:
    """A duration in readable units: "4.2 s", "3 min 05 s", "2 h 10 min"."""
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
