"""The report of a recovery training, at one pruning ratio or at several."""

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from ppf.recovery.results import Recovered, RecoveryScore
from ppf.report.page import Page, ReportSection
from ppf.report.recovery_plots import by_ratio, loss_curve
from ppf.report.scores import (
    LogPerplexity,
    decimal,
    percent,
    signed_percent,
)
from ppf.report.tables import Cell, Column, Table

_MODELS = ("dense", "pruned", "recovered")


def recovery_page(
    found: Recovered,
    *,
    title: str,
    command: str,
    measured_on: str,
    settings: Mapping[str, str],
    machine: Mapping[str, str],
    next_commands: Mapping[str, str],
) -> Page:
    """The page of a recovery.

    Args:
        found: scores, tokens, minutes and curve.
        title, command, next_commands: see `Page`.
        measured_on: a sentence about the text of the perplexities, except those on the test part.
        settings: how the model was trained: name → value.
        machine: versions and hardware: name → value.
    """
    scores = found.scores
    parts = [
        ReportSection("Perplexity", measured_on, name="recovery", table=_table(scores), wide=True),
        *_test(found.test),
        *_pictures(found),
        ReportSection("Training", facts=settings),
        ReportSection("Machine", facts=machine),
    ]
    return Page(title, command, [*_headline(scores), measured_on], [], parts, next_commands)


def _table(scores: Sequence[RecoveryScore]) -> Table:
    columns = [
        Column("ratio", percent),
        *(Column(name, decimal) for name in _MODELS),
        Column("change by training", signed_percent),
        Column("share of lost nats recovered", percent),
    ]
    rows: list[list[Cell]] = [
        [s.ratio, *(_perplexity(s, name) for name in _MODELS), _change(s), s.won_back]
        for s in scores
    ]
    return Table(columns, rows)


def _test(scores: Sequence[RecoveryScore]) -> Iterator[ReportSection]:
    if scores:
        note = "On the test part, which the training does not read."
        yield ReportSection(
            "Perplexity on the test part", note, name="test", table=_table(scores), wide=True
        )


def _pictures(found: Recovered) -> Iterator[ReportSection]:
    """The loss against tokens, and the perplexity against the ratio if there are several ratios."""
    scores = found.scores
    dense, pruned = (fmean(getattr(s, name) for s in scores) for name in ("dense", "pruned"))
    if found.curve:
        of = ", mean over pruning ratios" if len(scores) > 1 else ""
        right = "; right: recovered share of the lost nats" if pruned > dense else ""
        note = f"Loss on the validation part{of}{right}."
        yield ReportSection(
            "Loss", note, name="curve", figure=loss_curve(found.curve, dense, pruned)
        )
    if len(scores) > 1:
        note = "Before and after the training, on the validation part."
        lines = {name: [getattr(s, name) for s in scores] for name in _MODELS}
        figure = by_ratio([s.ratio for s in scores], lines)
        yield ReportSection("Every ratio", note, name="ratios", figure=figure)


def recovery_metrics(scores: Sequence[RecoveryScore], part: str = "validation") -> dict[str, float]:
    """The metrics of a recovery for loggers, as in "recovered/validation_perplexity".

    With several ratios the names end in the ratio. The share of recovered nats is that of the
    validation part.
    """
    metrics: dict[str, float] = {}
    for score in scores:
        at = f"/{score.ratio:g}" if len(scores) > 1 else ""
        for name in _MODELS:
            metrics[f"{name}/{part}_perplexity{at}"] = _perplexity(score, name)
        if part == "validation" and score.won_back is not None:
            metrics[f"won_back{at}"] = score.won_back
    return metrics


def _headline(scores: Sequence[RecoveryScore]) -> list[str]:
    if len(scores) > 1:
        mean = math.expm1(sum(s.recovered - s.pruned for s in scores) / len(scores))
        return [
            f"The training changes the perplexity by {signed_percent(mean)}, as the geometric mean"
            f" of {len(scores)} pruning ratios."
        ]
    (score,) = scores
    dense, pruned, recovered = (LogPerplexity(getattr(score, name)) for name in _MODELS)
    won = score.won_back
    share = "" if won is None else f" Training recovered {percent(won)} of the lost nats."
    return [
        f"Perplexity {recovered} instead of {pruned} before the training"
        f" ({signed_percent(_change(score))}), at a pruning ratio of {percent(score.ratio)}.",
        f"The dense model has {dense}.{share}",
    ]


def _perplexity(score: RecoveryScore, name: str) -> float:
    return LogPerplexity(getattr(score, name)).perplexity


def _change(score: RecoveryScore) -> float:
    """Relative change of the perplexity."""
    return math.expm1(score.recovered - score.pruned)
