"""The report of an evaluation: everything is read from its evaluation.json."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers import Logger

from ppf.report.page import Page, ReportSection
from ppf.report.publish import publish
from ppf.report.scores import decimal, mebibytes, percent
from ppf.report.tables import Cell, Table

EvaluationRecord = Mapping[str, Any]
"""The contents of an evaluation.json: an `Evaluation`, and where it comes from."""
_SHOWN = {
    "bytes saved": percent,
    "parameters removed": percent,
    "nats per token": "{:.4f}".format,
    "weights": mebibytes,
}
_RATES = {"prefill, tokens/s": "prefill", "decode, tokens/s": "decode"}


def publish_evaluation(folder: Path, loggers: Sequence[Logger]) -> None:
    """Makes the report from an evaluation.json."""
    found = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    publish(folder, loggers, page(found), metrics(found))


def page(found: EvaluationRecord) -> Page:
    """The page of an evaluation."""
    rows, test = found["results"], f"{found['windows']} windows of {found['window']} tokens"
    texts = [
        f"{row['name']} {'inf' if row['perplexity'] is None else decimal(row['perplexity'])}"
        for row in rows
    ]
    scores = Table([_scores(row, rounded=found["rounded"]) for row in rows], _SHOWN)
    speed: list[Mapping[str, Cell]] = [
        {"model": row["name"], "batch": timed["batch"]}
        | {name: timed[phase] for name, phase in _RATES.items()}
        | {"peak memory": timed["peak_bytes"]}
        for row in rows
        for timed in row["speed"]
    ]
    tasks: list[Mapping[str, Cell]] = [
        {"task": task, "metric": metric} | {row["name"]: row["tasks"][task][metric] for row in rows}
        for task, metrics in rows[0]["tasks"].items()
        for metric in metrics
    ]
    shown = dict.fromkeys(_RATES, "{:,.1f}".format) | {"peak memory": mebibytes}
    four = {row["name"]: "{:.4f}".format for row in rows}
    note = f"Test part of {found['text']}: {test}, {found['stride']} apart. ± is a standard error."
    parts = {
        "evaluation": ReportSection("Perplexity and size", note, "evaluation", table=scores),
        "speed": ReportSection("Speed", "Medians", "speed", table=Table(speed, shown)),
        "tasks": ReportSection("Tasks", "Zero-shot tasks", "tasks", table=Table(tasks, four)),
    }
    return Page(
        title=f"Evaluation of {', '.join(row['name'] for row in rows)}",
        command=found["command"],
        headline=f"Perplexity on {test} of the test part: {', '.join(texts)}.",
        sections=[
            *(section for section in parts.values() if section.table and section.table.rows),
            ReportSection("Settings", facts=found["settings"]),
            ReportSection("Machine", facts=found["machine"]),
        ],
        next_commands=found["next_commands"],
    )


def metrics(found: EvaluationRecord) -> dict[str, float]:
    """The metrics of an evaluation for loggers, by name, as in "PPF/test_perplexity"."""
    numbers: dict[str, float] = {}
    for row in found["results"]:
        name = row["name"]
        if row["perplexity"] is not None:
            numbers[f"{name}/test_perplexity"] = row["perplexity"]
        numbers |= {f"{name}/{key}": row[key] for key in ("parameters", "bytes")}
        for timed in row["speed"]:
            for phase in _RATES.values():
                numbers[f"{name}/{phase}_tokens_per_second/batch_{timed['batch']}"] = timed[phase]
        for task, scores in row["tasks"].items():
            numbers |= {f"{name}/{task}/{score}": value for score, value in scores.items()}
    return numbers


def _scores(row: EvaluationRecord, *, rounded: bool) -> dict[str, Cell]:
    perplexity, error = row["perplexity"], row["std_error"]
    return {
        "model": row["name"],
        "bytes saved" if rounded else "parameters removed": row["ratio"],
        "test perplexity": perplexity,
        "± test perplexity": None if None in (perplexity, error) else perplexity * error,
        "nats per token": row["nll"],
        "parameters": row["parameters"],
        "weights": row["bytes"],
    }
