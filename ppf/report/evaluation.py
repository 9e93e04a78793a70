"""The report of an evaluation: everything is read from its evaluation.json."""

from collections.abc import Mapping
from typing import Any

from ppf.report.numbers import decimal, mebibytes, percent
from ppf.report.page import Page, ReportSection
from ppf.report.tables import Table

EvaluationRecord = Mapping[str, Any]
"""The contents of an evaluation.json: `results` (a row for each model), and where it comes from."""
_PHASES = ("prefill", "decode")


def page(found: EvaluationRecord) -> Page:
    """The page of an evaluation."""
    rows, test = found["results"], f"{found['windows']} windows of {found['window']} tokens"
    texts = [f"{row['name']} {decimal(row['perplexity'])}" for row in rows]
    note = f"Test part of {found['text']}: {test}. ± is a standard error."
    saved = "bytes saved" if found["rounded"] else "parameters removed"
    scores = [
        {
            "model": row["name"],
            saved: row["ratio"],
            "test perplexity": row["perplexity"],
            "± test perplexity": (row["perplexity"] or 0) * (row["std_error"] or 0) or None,
            "parameters": row["parameters"],
            "weights": row["bytes"],
        }
        for row in rows
    ]
    table = Table(scores, {saved: percent, "weights": mebibytes})
    sections = [ReportSection("Perplexity and size", note, "evaluation", table=table)]
    if speed := [
        {"model": row["name"], "batch": timed["batch"]}
        | {f"{phase}, tokens/s": timed[phase] for phase in _PHASES}
        | {"peak memory": timed["peak_bytes"]}
        for row in rows
        for timed in row["speed"]
    ]:
        rates = dict.fromkeys((f"{phase}, tokens/s" for phase in _PHASES), "{:,.1f}".format)
        table = Table(speed, {**rates, "peak memory": mebibytes})
        sections.append(ReportSection("Speed", "Medians", "speed", table=table))
    if tasks := [
        {"task": task, "metric": metric} | {row["name"]: row["tasks"][task][metric] for row in rows}
        for task, scores in rows[0]["tasks"].items()
        for metric in scores
    ]:
        table = Table(tasks, {row["name"]: "{:.4f}".format for row in rows})
        sections.append(ReportSection("Tasks", "Zero-shot tasks", "tasks", table=table))
    title = f"Evaluation of {', '.join(row['name'] for row in rows)}"
    headline = f"Perplexity on {test} of the test part: {', '.join(texts)}."
    return Page(title, headline, sections, found)


def metrics(found: EvaluationRecord) -> dict[str, Any]:
    """The metrics of an evaluation for loggers: those of each model, all on the test part."""
    return {
        row["name"]: row | {"speed": {f"batch_{timed['batch']}": timed for timed in row["speed"]}}
        for row in found["results"]
    }
