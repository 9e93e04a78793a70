"""The report of a recovery training, at one pruning ratio or at several: from its summary.json."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning.fabric.loggers import Logger

from ppf.report.page import Page, ReportSection
from ppf.report.plots import loss_curve, recovery_by_ratio
from ppf.report.publish import publish
from ppf.report.scores import LogPerplexity, decimal, percent, signed_percent
from ppf.report.tables import Cell, Column, Table, print_line, print_table

RecoverySummary = Mapping[str, Any]
"""The contents of a recovery's summary.json: title, command, text, results (for each ratio the
losses of the models dense, pruned and recovered in nats per token), test (the same on the test
part), curve, settings, machine, next_commands."""
_MODELS = ("dense", "pruned", "recovered")


def publish_recovery(folder: Path, loggers: Sequence[Logger]) -> None:
    """Writes report.html beside a summary.json, gives everything to the loggers, and prints it."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    shown = page(summary)
    publish(loggers, shown, metrics(summary), folder)
    for table in shown.tables.values():
        print_table(table)
    print_line(shown.headline)
    print_line(f"Report: {folder / 'report.html'}")
    for purpose, command in summary["next_commands"].items():
        print_line(f"{purpose}: {command}")


def page(summary: RecoverySummary) -> Page:
    """The page of a recovery."""
    results = summary["results"]
    gained = math.expm1(fmean(row["recovered"] - row["pruned"] for row in results))
    return Page(
        title=summary["title"],
        command=summary["command"],
        headline=(
            f"Training changes the perplexity on the validation part by {signed_percent(gained)}"
            " (geometric mean over pruning ratios)."
        ),
        sections=[
            *_tables(summary),
            *_figures(summary),
            ReportSection("Training", facts=summary["settings"]),
            ReportSection("Machine", facts=summary["machine"]),
        ],
        next_commands=summary["next_commands"],
    )


def metrics(summary: RecoverySummary) -> dict[str, float]:
    """The metrics of a recovery for loggers, as in "recovered/validation_perplexity".

    With several ratios the names end in the ratio. The share of recovered nats is that of the
    validation part.
    """
    found: dict[str, float] = {}
    for part, rows in (("validation", summary["results"]), ("test", summary["test"])):
        for row in rows:
            at = f"/{row['ratio']:g}" if len(rows) > 1 else ""
            for name in _MODELS:
                found[f"{name}/{part}_perplexity{at}"] = LogPerplexity(row[name]).perplexity
            if part == "validation" and row["won_back"] is not None:
                found[f"won_back{at}"] = row["won_back"]
    return found


def _tables(summary: RecoverySummary) -> Iterator[ReportSection]:
    columns = [
        Column("ratio", percent),
        *(Column(name, decimal) for name in _MODELS),
        Column("change by training", signed_percent),
        Column("share of lost nats recovered", percent),
    ]
    for part, name in (("results", "recovery"), ("test", "test")):
        rows: list[list[Cell]] = [
            [
                row["ratio"],
                *(LogPerplexity(row[model]).perplexity for model in _MODELS),
                math.expm1(row["recovered"] - row["pruned"]),
                row["won_back"],
            ]
            for row in summary[part]
        ]
        if rows:
            words = "validation" if part == "results" else "test"
            note = f"Measured on the {words} part of {summary['text']}."
            title = f"Perplexity on the {words} part"
            yield ReportSection(title, note, name=name, table=Table(columns, rows))


def _figures(summary: RecoverySummary) -> Iterator[ReportSection]:
    """The loss against tokens, and the loss against the ratio if there are several ratios."""
    results = summary["results"]
    if summary["curve"]:
        dense, pruned = (fmean(row[name] for row in results) for name in ("dense", "pruned"))
        note = "Loss on the validation part, mean over pruning ratios."
        figure = loss_curve(summary["curve"], dense, pruned)
        yield ReportSection("Loss", note, name="curve", figure=figure)
    if len(results) > 1:
        lines = {name: [row[name] for row in results] for name in _MODELS}
        figure = recovery_by_ratio([row["ratio"] for row in results], lines)
        note = "Before and after the training, on the validation part."
        yield ReportSection("Every ratio", note, name="ratios", figure=figure)
