"""Tables of an evaluation, for the console and for W&B."""

from rich import box
from rich.console import Console
from rich.table import Table

from ppf.evaluation.results import Evaluation, ModelResult, Speed
from ppf.progress import console
from ppf.report.scores import decimal, percent
from ppf.report.tables import print_table

Rows = tuple[list[str], list[list[str]]]
"""Names of the columns, and the cells of each row as text."""


def evaluation_tables(evaluation: Evaluation) -> dict[str, Rows]:
    """The tables by name: perplexity and size, then speed and tasks if they were measured."""
    tables = {"evaluation": _scores(evaluation)}
    if any(found.speed for found in evaluation.results):
        tables["speed"] = _speed(evaluation)
    if any(found.tasks for found in evaluation.results):
        tables["tasks"] = _tasks(evaluation)
    return tables


def print_evaluation(evaluation: Evaluation, *, target: Console = console) -> None:
    """Prints the tables, and the text and windows that they were measured on."""
    for columns, rows in evaluation_tables(evaluation).values():
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        for name in columns:
            table.add_column(name, justify="left" if name in _WORDS else "right")
        for row in rows:
            table.add_row(*row)
        print_table(target, table)
    overlap = f", {evaluation.stride} apart" if evaluation.stride < evaluation.window else ""
    target.print(
        f"Measured on the test part of {evaluation.text}:"
        f" {evaluation.windows} windows of {evaluation.window} tokens{overlap}.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )


_WORDS = ("model", "task", "metric")  # columns of text; all others hold numbers


def _scores(evaluation: Evaluation) -> Rows:
    columns = ["model", "ratio", "test perplexity", "nats per token", "parameters", "weights"]
    return columns, [_score(found) for found in evaluation.results]


def _score(found: ModelResult) -> list[str]:
    return [
        found.name,
        "" if found.ratio is None else percent(found.ratio),
        decimal(found.perplexity),
        f"{found.nll:.4f}",
        f"{found.parameters:,}",
        _mebibytes(found.bytes),
    ]


def _speed(evaluation: Evaluation) -> Rows:
    columns = ["model", "batch", "prefill, tokens/s", "decode, tokens/s", "peak memory"]
    rows = [[x.name, *_rates(speed)] for x in evaluation.results for speed in x.speed]
    return columns, rows


def _rates(speed: Speed) -> list[str]:
    peak = "" if speed.peak_bytes is None else _mebibytes(speed.peak_bytes)
    return [str(speed.batch), f"{speed.prefill:,.1f}", f"{speed.decode:,.1f}", peak]


def _tasks(evaluation: Evaluation) -> Rows:
    """One row for each metric, one column for each model."""
    models = evaluation.results
    rows = [
        [task, metric, *(f"{found.tasks[task][metric]:.4f}" for found in models)]
        for task, metrics in models[0].tasks.items()
        for metric in metrics
    ]
    return ["task", "metric", *(found.name for found in models)], rows


def _mebibytes(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB"
