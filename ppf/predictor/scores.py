"""How well predictions match measurements: overall, and within bands of the pruning ratio."""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

BANDS = (0.0, 0.15, 0.3, 0.45, 0.6)
"""Edges of the ratio bands that scores are reported for."""
USUAL = math.log(10)  # nats above the dense model; policies below it count in nmse
NOMINAL = 1.6449  # standard deviations of a 90 % interval
_FEWEST = 3  # rows that a score needs
_ALIKE = 0.01  # largest difference of two pruning ratios that count as equal
_RESAMPLES = 500  # of the bootstrap


def interval_factor(errors: Float[Tensor, " rows"]) -> Float[Tensor, ""]:
    """The factor on standard deviations with which 90 % intervals contain 90 % of the rows.

    Args:
        errors: absolute errors, in predicted standard deviations.
    """
    count = len(errors)
    rank = min(count, -(-9 * (count + 1) // 10))
    return errors.sort().values[rank - 1] / NOMINAL


class HeldOut(NamedTuple):
    """Policies that a predictor was not fitted to: predicted and measured, nats per token.

    Rows of one group, which share their first layers, have the same number in `group`.
    """

    predicted: Float[Tensor, " rows"]
    std: Float[Tensor, " rows"]
    measured: Float[Tensor, " rows"]
    ratio: Float[Tensor, " rows"]
    group: Int[Tensor, " rows"]


def scores(
    rows: HeldOut, dense_nll: float, bands: Sequence[float] = BANDS, *, grouped: bool = False
) -> dict[str, float]:
    """Scores of a predictor on policies that it was not fitted to.

    Each score has the name given here, and "name_15_30" within a ratio band:

    - equal_ratio: Kendall correlation among pairs of policies whose pruning ratios differ by at
      most 0.01. A search compares such pairs;
    - kendall: Kendall correlation of all policies;
    - ratio_alone: Kendall correlation of the measurements with the pruning ratio, the baseline of
      the other correlations;
    - nmse: squared error divided by the variance of the log-perplexity, over policies below ten
      times the dense perplexity;
    - mae: mean absolute error, nats per token;
    - coverage: share of measurements inside the nominal 90 % interval, over the same policies; left
      out if the predictor estimates no intervals;
    - policies: number of rows;
    - intervals: number of rows that the coverage counts.

    Args:
        dense_nll: log-perplexity of the dense model, nats per token.
        bands: ascending edges of the ratio bands.
        grouped: `equal_ratio` compares only rows of one group.
    """
    found: dict[str, float] = {}
    for ending, part in _parts(rows, bands):
        found_once = _scores(part, dense_nll, torch.ones(1, len(part.measured)), grouped)
        values = {name: float(score) for name, score in found_once.items()}
        values["policies"] = len(part.measured)
        values["intervals"] = int((_usual(part, dense_nll) & (part.std > 0)).sum())
        found |= {name + ending: value for name, value in values.items() if math.isfinite(value)}
    return found


def with_intervals(
    rows: HeldOut, dense_nll: float, bands: Sequence[float] = BANDS, *, grouped: bool = False
) -> dict[str, float]:
    """The scores, and the ends of their 90 % bootstrap intervals as "name_low" and "name_high".

    Groups are resampled, because policies that share layers have similar errors. A part of the
    ratios with a single group gets no intervals.

    Source: Efron & Tibshirani, "An Introduction to the Bootstrap" (1993), chapters 8 and 13.
    """
    found = scores(rows, dense_nll, bands, grouped=grouped)
    for ending, part in _parts(rows, bands):
        if len(part.group.unique()) < 2:
            continue
        drawn = _resampled(part.group)
        for name, draws in _scores(part, dense_nll, drawn, grouped).items():
            finite = draws[draws.isfinite()]
            if name + ending in found and len(finite):
                low, high = finite.double().quantile(torch.tensor([0.05, 0.95]).double()).tolist()
                found |= {f"{name}{ending}_low": low, f"{name}{ending}_high": high}
    return found


def coverage_warning(metrics: Mapping[str, float], what: str) -> str:
    """A sentence on intervals that are too narrow; empty: they are not.

    Their coverage is then significantly below 90 % (one-sided, 5 % level).

    Args:
        metrics: scores by name.
        what: the policies, as in "held-out policies".
    """
    coverage, count = metrics.get("coverage"), metrics.get("intervals", 0)
    if coverage is None or coverage >= 0.9 - NOMINAL * (0.09 / max(count, 1)) ** 0.5:
        return ""
    return (
        f"The predictor's 90 % intervals hold for only {100 * coverage:.0f} % of {count:.0f}"
        f" {what}. They are too narrow: rely on measured perplexities."
    )


def endings(bands: Sequence[float] = BANDS) -> list[tuple[str, str]]:
    """The words for each band, as in "15–30 %", and the ending of its scores, as in "_15_30"."""
    edges = [(f"{100 * low:.0f}", f"{100 * high:.0f}") for low, high in pairwise(bands)]
    return [(f"{low}–{high} %", f"_{low}_{high}") for low, high in edges]


def _parts(rows: HeldOut, bands: Sequence[float]) -> Iterator[tuple[str, HeldOut]]:
    """All rows and those of each band, with the ending of their scores; without small bands."""
    numbers = HeldOut(*(column.cpu().float() for column in rows))
    rows = numbers._replace(group=rows.group.cpu())
    inside = [(rows.ratio >= low) & (rows.ratio < high) for low, high in pairwise(bands)]
    every = torch.ones_like(rows.ratio, dtype=torch.bool)
    for ending, mask in zip(
        ["", *(end for _, end in endings(bands))], [every, *inside], strict=True
    ):
        if mask.sum() >= _FEWEST:
            yield ending, HeldOut(*(column[mask] for column in rows))


def _resampled(group: Int[Tensor, " rows"]) -> Float[Tensor, "draws rows"]:
    """How often each row occurs when groups are drawn with replacement."""
    _, group = group.unique(return_inverse=True)
    count = int(group.max()) + 1
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(count, (_RESAMPLES, count), generator=generator)
    times = torch.zeros(_RESAMPLES, count).scatter_add_(1, drawn, torch.ones(_RESAMPLES, count))
    return times[:, group]


def _scores(
    rows: HeldOut, dense_nll: float, weights: Float[Tensor, "draws rows"], grouped: bool
) -> dict[str, Float[Tensor, " draws"]]:
    """Each score of rows that count as often as the weights say."""
    mean, measured, ratio = rows.predicted, rows.measured, rows.ratio
    error = (mean - measured).abs()
    pairs = torch.ones(len(mean), len(mean))
    alike = (ratio[:, None] - ratio).abs() <= _ALIKE
    if grouped:
        alike &= rows.group[:, None] == rows.group
    usual = _usual(rows, dense_nll).float() * weights
    return {
        "equal_ratio": _kendall(mean, measured, weights, alike.float()),
        "kendall": _kendall(mean, measured, weights, pairs),
        "ratio_alone": _kendall(ratio, measured, weights, pairs),
        "nmse": _average(error.square(), usual) / _variance(measured, usual),
        "mae": _average(error, weights),
        "coverage": _average((error <= NOMINAL * rows.std).float(), usual * (rows.std > 0)),
    }


def _usual(rows: HeldOut, dense_nll: float) -> Bool[Tensor, " rows"]:
    """The policies that are not catastrophic."""
    return rows.measured < dense_nll + USUAL


def _kendall(
    x: Float[Tensor, " rows"],
    y: Float[Tensor, " rows"],
    weights: Float[Tensor, "draws rows"],
    pairs: Float[Tensor, "rows rows"],
) -> Float[Tensor, " draws"]:
    """Kendall's τ_b among the pairs; not finite if there are none without ties."""
    first, second = ((value[:, None] - value).sign() * pairs for value in (x, y))

    def total(signs: Tensor) -> Tensor:
        return ((weights @ signs) * weights).sum(1)

    return total(first * second) / (total(first.abs()) * total(second.abs())).sqrt()


def _variance(x: Tensor, weights: Tensor) -> Float[Tensor, " draws"]:
    return _average((x - _average(x, weights)[:, None]).square(), weights)


def _average(x: Tensor, weights: Tensor) -> Float[Tensor, " draws"]:
    return (x * weights).sum(1) / weights.sum(1)
