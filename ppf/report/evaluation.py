"""The report of an evaluation: everything is read from its evaluation.json."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers import Logger

from ppf.report.page import Page, ReportSection
from ppf.report.publish import publish
from ppf.report.scores import decimal, mebibytes, percent
from ppf.report.tables import Cell, Column, Table, error, print_line, print_table

Results = Mapping[str, Any]
"""The contents of an evaluation.json: an `Evaluation`, and where it comes from."""


def publish_evaluation(folder: Path, loggers: Sequence[Logger]) -> None:
    """Writes report.html beside an evaluation.json, gives all to the loggers, and prints it."""
    found = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    shown = page(found)
    publish(loggers, shown, metrics(found), folder)
    for table in shown.tables.values():
        print_table(table)
    print_line(shown.sections[0].note)
    for file in ("evaluation.json", "report.html"):
        print_line(str(folder / file))


def page(found: Results) -> Page:
    """The page of an evaluation."""
    rows = found["results"]
    note = (
        f"Measured on the test part of {found['text']}: {found['windows']} windows of"
        f" {found['window']} tokens, {found['stride']} apart. ± is one standard error over the"
        " windows."
    )
    texts = [f"{row['name']} {_perplexity(row)}" for row in rows]
    scores = ReportSection("Perplexity and size", note, name="evaluation", table=_scores(found))
    sections = [scores]
    if any(row["speed"] for row in rows):
        note = "Medians of several runs, with prompts of random tokens."
        sections.append(ReportSection("Speed", note, name="speed", table=_speed(rows)))
    if any(row["tasks"] for row in rows):
        note = "Zero-shot tasks of lm-evaluation-harness."
        sections.append(ReportSection("Tasks", note, name="tasks", table=_tasks(rows)))
    return Page(
        title=f"Evaluation of {', '.join(row['name'] for row in rows)}",
        command=found["command"],
        headline=f"Perplexity on the test part: {', '.join(texts)}.",
        sections=[
            *sections,
            ReportSection("Settings", facts=found["settings"]),
            ReportSection("Machine", facts=found["machine"]),
        ],
        next_commands=found["next_commands"],
    )


def metrics(found: Results) -> dict[str, float]:
    """The metrics of an evaluation for loggers, by name, as in "PPF/test_perplexity"."""
    numbers: dict[str, float] = {}
    for row in found["results"]:
        name = row["name"]
        if row["perplexity"] is not None:
            numbers[f"{name}/test_perplexity"] = row["perplexity"]
        numbers |= {f"{name}/{key}": row[key] for key in ("parameters", "bytes")}
        for speed in row["speed"]:
            for phase in ("prefill", "decode"):
                numbers[f"{name}/{phase}_tokens_per_second/batch_{speed['batch']}"] = speed[phase]
        for task, scores in row["tasks"].items():
            numbers |= {f"{name}/{task}/{score}": value for score, value in scores.items()}
    return numbers


def _perplexity(row: Results) -> str:
    return "inf" if row["perplexity"] is None else decimal(row["perplexity"])


def _scores(found: Results) -> Table:
    columns = [
        Column("model"),
        Column("bytes saved" if found["rounded"] else "parameters removed", percent),
        Column("test perplexity", decimal),
        error("± standard error"),
        Column("nats per token", "{:.4f}".format),
        Column("parameters", "{:,}".format),
        Column("weights", mebibytes),
    ]
    rows: list[list[Cell]] = []
    for row in found["results"]:
        known = row["std_error"] is not None and row["perplexity"] is not None
        std_error = row["perplexity"] * row["std_error"] if known else None
        keys = ("nll", "parameters", "bytes")
        cells = [row["name"], row["ratio"], row["perplexity"], std_error]
        rows.append([*cells, *(row[key] for key in keys)])
    return Table(columns, rows).without_empty_columns()


def _speed(rows: Sequence[Results]) -> Table:
    rate = "{:,.1f}".format
    columns = [
        Column("model"),
        Column("batch", str),
        Column("prefill, tokens/s", rate),
        Column("decode, tokens/s", rate),
        Column("peak memory", mebibytes),
    ]
    keys = ("batch", "prefill", "decode", "peak_bytes")
    timed = [(row["name"], speed) for row in rows for speed in row["speed"]]
    return Table(columns, [[name, *(speed[key] for key in keys)] for name, speed in timed])


def _tasks(rows: Sequence[Results]) -> Table:
    """One row for each metric, one column for each model."""
    columns = [Column(row["name"], "{:.4f}".format) for row in rows]
    names = [(task, metric) for task, scores in rows[0]["tasks"].items() for metric in scores]
    cells: list[list[Cell]] = [
        [task, metric, *(row["tasks"][task][metric] for row in rows)] for task, metric in names
    ]
    return Table([Column("task"), Column("metric"), *columns], cells)
