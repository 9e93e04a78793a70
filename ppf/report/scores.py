"""Perplexities, measured or predicted, and how numbers are shown."""

import math
from collections.abc import Sequence
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
        std_error: standard error of a measurement over the windows, nats per token; None: unknown.
    """

    nll: float
    std: float | None = None
    std_error: float | None = None

    @property
    def known(self) -> str:
        """Whether it is "measured" or "predicted"."""
        return "measured" if self.std is None else "predicted"

    @property
    def perplexity(self) -> float:
        """exp(nll); infinite if it overflows."""
        return _exp(self.nll)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of a predicted perplexity; None if it is measured."""
        if self.std is None:
            return None
        reach = _TWO_SIDED_95 * self.std
        return _exp(self.nll - reach), _exp(self.nll + reach)

    @property
    def error(self) -> float | None:
        """Standard error of a measured perplexity; None: unknown."""
        return None if self.std_error is None else self.perplexity * self.std_error

    def record(self) -> dict[str, Any]:
        """The values for a JSON file; numbers that are not finite become null."""
        known: dict[str, Any] = {"nll": _finite(self.nll), "perplexity": _finite(self.perplexity)}
        if self.interval:
            known |= {"std": self.std, "interval_95": [_finite(end) for end in self.interval]}
        if self.std_error is not None:
            known["std_error"] = _finite(self.std_error)
        return known

    def __str__(self) -> str:
        if self.interval is None:
            return decimal(self.perplexity)
        low, high = self.interval
        return f"{decimal(self.perplexity)} ({decimal(low)}–{decimal(high)})"


NO_RULES = ("dense", "uniform", "PPF")
"""Names of policies that are not of allocation rules."""


@dataclass(frozen=True)
class Entry:
    """One policy in a table or a plot.

    Args:
        policy: name of the policy, for example "dense", "uniform" or "PPF".
        ratio: its pruning ratio.
        measured: log-perplexity measured on the labelling part; None: not measured.
        predicted: predicted log-perplexity; None: not predicted.
        selection: log-perplexity measured on the selection part, whose windows the search did not
            use; None: not measured.
        difference: from uniform pruning's log-perplexity on the selection part, with the standard
            error of paired windows; None: not measured.
        parameters: parameters of the model under this policy; None: unknown.
        also: allocation rules that propose the same policy.
        bytes: size of the prunable matrices, if the budget counts bytes; None: it does not.
        test: log-perplexity measured on the test part after the search; None: not measured.
    """

    policy: str
    ratio: float
    measured: LogPerplexity | None = None
    predicted: LogPerplexity | None = None
    selection: LogPerplexity | None = None
    difference: LogPerplexity | None = None
    parameters: int | None = None
    test: LogPerplexity | None = None
    bytes: int | None = None
    also: Sequence[str] = ()

    @property
    def title(self) -> str:
        """All names of the policy, as in "uniform = owl"."""
        return " = ".join([self.policy, *self.also])

    @property
    def rules(self) -> Sequence[str]:
        """The allocation rules that propose the policy."""
        return [name for name in (self.policy, *self.also) if name not in NO_RULES]

    @property
    def scores(self) -> Sequence[LogPerplexity]:
        """The measured and the predicted log-perplexity, if they are known."""
        return [score for score in (self.measured, self.predicted) if score]

    def record(self) -> dict[str, Any]:
        """The values for a JSON file."""
        scores = {
            name: getattr(self, name) for name in ("measured", "selection", "predicted", "test")
        }
        known = {name: score.record() for name, score in scores.items() if score}
        if self.difference:
            nats, error = self.difference.nll, self.difference.std_error
            known["against_uniform"] = {"nats": _finite(nats)}
            if error is not None:
                known["against_uniform"]["std_error"] = _finite(error)
        also = {"also": list(self.also)} if self.also else {}
        return {"policy": self.policy, "ratio": self.ratio} | also | known


def uniform_at(ratio: float, entries: Sequence[Entry]) -> LogPerplexity | None:
    """The measurement of uniform pruning at the nearest ratio; None: not measured."""
    known = [entry for entry in entries if entry.policy == "uniform" and entry.measured]
    return min(known, key=lambda entry: abs(entry.ratio - ratio)).measured if known else None


def change(now: float, before: float) -> float:
    """The relative change; NaN if either perplexity is not finite."""
    return now / before - 1 if math.isfinite(now) and math.isfinite(before) else math.nan


def gain(entry: Entry) -> tuple[float, float] | None:
    """The relative change from uniform pruning on the selection part, and its standard error."""
    score = entry.difference
    if not (score and score.error is not None and math.isfinite(score.perplexity)):
        return None
    return score.perplexity - 1, score.error


def decimal(value: float) -> str:
    """A perplexity with three to seven digits; from 10⁷ on with an exponent."""
    size = abs(value)
    if size < 100:
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


def millions(count: int) -> str:
    """A number of parameters, for example "134.5 M"."""
    return f"{count / 1e6:,.1f} M" if count >= 1e6 else f"{count:,}"


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
