"""The report of a recovery training, at one pruning ratio or at several: from its summary.json."""

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from ppf.evaluation import LogPerplexity
from ppf.report.numbers import percent, signed_percent
from ppf.report.page import Page, ReportSection
from ppf.report.plots import curves
from ppf.report.tables import Table

RecoverySummary = Mapping[str, Any]
"""The contents of a recovery's summary.json: title, command, text, results (for each ratio the
losses of the models dense, pruned and recovered in nats per token), test (the same on the test
part), curve, settings, machine, next_commands."""
_MODELS = ("dense", "pruned", "recovered")
_PARTS = {"validation": "results", "test": "test"}
_CHANGE, _SHARE = "change by training", "share of lost nats recovered"


def page(summary: RecoverySummary) -> Page:
    """The page of a recovery."""
    sections = []
    for part, key in _PARTS.items():
        rows = [
            {"ratio": row["ratio"]}
            | {name: LogPerplexity(row[name]).perplexity for name in _MODELS}
            | {_CHANGE: math.expm1(row["recovered"] - row["pruned"]), _SHARE: row["won_back"]}
            for row in summary[key]
        ]
        table = Table(rows, {"ratio": percent, _CHANGE: signed_percent, _SHARE: percent})
        note = f"Measured on the {part} part of {summary['text']}."
        sections += [ReportSection("Perplexity", note, name=part, table=table)] if rows else []
    if summary["curve"]:
        curve = [{"step": tokens, "nats per token": nll} for tokens, nll in summary["curve"]]
        note = "Loss on the validation part against tokens read; mean over pruning ratios."
        sections.append(ReportSection("Loss", note, name="curve", figure=curves(curve)))
    gained = math.expm1(fmean(row["recovered"] - row["pruned"] for row in summary["results"]))
    worse = math.expm1(fmean(row["recovered"] - row["dense"] for row in summary["results"]))
    headline = (
        f"Training changes the perplexity on the validation part by {signed_percent(gained)}, to"
        f" {signed_percent(worse)} against the dense model (geometric means over pruning ratios)."
    )
    return Page(summary["title"], headline, sections, summary)


def metrics(summary: RecoverySummary) -> dict[str, Any]:
    """The metrics of a recovery for loggers; with several ratios, below the ratio.

    Losses are in nats per token.
    """
    return {
        f"{part}/{row['ratio']:g}" if len(summary[key]) > 1 else part: row
        for part, key in _PARTS.items()
        for row in summary[key]
    }
