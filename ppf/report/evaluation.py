"""The report of an evaluation: tables for the console, the page, and metrics for loggers."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers import Logger
from rich.console import Console

from ppf.evaluation.results import Evaluation, ModelResult, Speed
from ppf.progress import console
from ppf.report.headline import evaluation_headline
from ppf.report.html import write_page
from ppf.report.page import Page, ReportSection, Tile
from ppf.report.publish import Published, publish
from ppf.report.scores import decimal, mebibytes, percent
from ppf.report.tables import Cell, Column, Table, error, print_line, print_table


def publish_evaluation(folder: Path, loggers: Sequence[Logger]) -> None:
    """Writes report.html beside an evaluation.json, gives all to the loggers, and prints it."""
    found = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    rows = [row | {"speed": [Speed(**x) for x in row["speed"]]} for row in found["results"]]
    nats = {"nll": math.inf, "perplexity": math.inf}  # null: not finite
    known: list[dict[str, Any]] = [
        {key: nats.get(key) if value is None else value for key, value in row.items()}
        for row in rows
    ]
    results = [ModelResult(**row) for row in known]
    keys = ("text", "windows", "window", "stride", "rounded")
    evaluation = Evaluation(results=results, **{key: found[key] for key in keys})
    page = evaluation_page(
        evaluation,
        title=f"Evaluation of {', '.join(result.name for result in results)}",
        command=found["command"],
        settings={name: str(value) for name, value in found["settings"].items()},
        machine=found["machine"],
        next_commands=found["next_commands"],
    )
    print_evaluation(evaluation)
    write_page(folder / "report.html", page)
    metrics = evaluation_metrics(evaluation)
    publish(loggers, Published.of(page, folder / "report.html", metrics))
    for file in ("evaluation.json", "report.html"):
        print_line(str(folder / file))


def evaluation_tables(evaluation: Evaluation) -> dict[str, Table]:
    """The tables by name: perplexity and size, then speed and tasks if they were measured."""
    tables = {"evaluation": _scores(evaluation)}
    if any(found.speed for found in evaluation.results):
        tables["speed"] = _speed(evaluation)
    if any(found.tasks for found in evaluation.results):
        tables["tasks"] = _tasks(evaluation)
    return tables


def measured_on(evaluation: Evaluation) -> str:
    """A sentence about the text and the windows that the perplexities were measured on."""
    overlap = f", {evaluation.stride} apart" if evaluation.stride < evaluation.window else ""
    return (
        f"Measured on the test part of {evaluation.text}:"
        f" {evaluation.windows} windows of {evaluation.window} tokens{overlap}."
    )


def print_evaluation(evaluation: Evaluation, *, target: Console = console) -> None:
    """Prints the tables, and the text and windows that they were measured on."""
    for table in evaluation_tables(evaluation).values():
        print_table(table, target=target)
    print_line(measured_on(evaluation), target=target)


def evaluation_page(
    evaluation: Evaluation,
    *,
    title: str,
    command: str,
    settings: Mapping[str, str],
    machine: Mapping[str, str],
    next_commands: Mapping[str, str],
) -> Page:
    """The page of an evaluation; see `Page` for the arguments."""
    known = any(found.std_error is not None for found in evaluation.results)
    errors = " ± is one standard error over the windows." if known else ""
    notes = {
        "evaluation": f"{measured_on(evaluation)}{errors}",
        "speed": "Medians of several runs, with prompts of random tokens.",
        "tasks": "Zero-shot tasks of lm-evaluation-harness.",
    }
    titles = {"evaluation": "Perplexity and size", "speed": "Speed", "tasks": "Tasks"}
    sections = [
        ReportSection(titles[name], notes[name], name=name, table=table, wide=True)
        for name, table in evaluation_tables(evaluation).items()
    ]
    tiles = [
        Tile(found.name, decimal(found.perplexity), "perplexity on the test part")
        for found in evaluation.results
    ]
    ending = [ReportSection("Settings", facts=settings), ReportSection("Machine", facts=machine)]
    headline = [*evaluation_headline(evaluation), measured_on(evaluation)]
    return Page(title, command, headline, tiles, [*sections, *ending], next_commands)


def evaluation_metrics(evaluation: Evaluation) -> dict[str, float]:
    """The metrics of an evaluation for loggers, by name, as in "PPF/test_perplexity"."""
    metrics: dict[str, float] = {}
    for found in evaluation.results:
        metrics |= {
            f"{found.name}/test_perplexity": found.perplexity,
            f"{found.name}/parameters": found.parameters,
            f"{found.name}/bytes": found.bytes,
        }
        for speed in found.speed:
            metrics[f"{found.name}/prefill_tokens_per_second/batch_{speed.batch}"] = speed.prefill
            metrics[f"{found.name}/decode_tokens_per_second/batch_{speed.batch}"] = speed.decode
        for task, scores in found.tasks.items():
            metrics |= {f"{found.name}/{task}/{name}": score for name, score in scores.items()}
    return metrics


def _scores(evaluation: Evaluation) -> Table:
    columns = [
        Column("model"),
        Column("bytes saved" if evaluation.rounded else "parameters removed", percent),
        Column("test perplexity", decimal),
        error("± standard error"),
        Column("nats per token", "{:.4f}".format),
        Column("parameters", "{:,}".format),
        Column("weights", mebibytes),
    ]
    return Table(columns, [_score(x) for x in evaluation.results]).without_empty_columns()


def _score(found: ModelResult) -> list[Cell]:
    std_error = None if found.std_error is None else found.perplexity * found.std_error
    return [
        found.name,
        found.ratio,
        found.perplexity,
        std_error,
        found.nll,
        found.parameters,
        found.bytes,
    ]


def _speed(evaluation: Evaluation) -> Table:
    rate = "{:,.1f}".format
    columns = [
        Column("model"),
        Column("batch", str),
        Column("prefill, tokens/s", rate),
        Column("decode, tokens/s", rate),
        Column("peak memory", mebibytes),
    ]
    rows = [[x.name, *_rates(speed)] for x in evaluation.results for speed in x.speed]
    return Table(columns, rows)


def _rates(speed: Speed) -> list[Cell]:
    return [speed.batch, speed.prefill, speed.decode, speed.peak_bytes]


def _tasks(evaluation: Evaluation) -> Table:
    """One row for each metric, one column for each model."""
    models = evaluation.results
    rows: list[list[Cell]] = [
        [task, metric, *(found.tasks[task][metric] for found in models)]
        for task, metrics in models[0].tasks.items()
        for metric in metrics
    ]
    heads = [Column(found.name, "{:.4f}".format) for found in models]
    return Table([Column("task"), Column("metric"), *heads], rows)
