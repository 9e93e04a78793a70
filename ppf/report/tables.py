"""Tables of results: for the console, the page and the loggers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table as RichTable

from ppf.predictor.scores import endings
from ppf.progress import console
from ppf.report.scores import (
    Entry,
    LogPerplexity,
    change,
    decimal,
    duration,
    gain,
    millions,
    percent,
    signed_percent,
    uniform_at,
)

Cell = str | float | None
"""A value of a table; None: not known."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        name: its heading.
        show: makes text of a number; None: the column holds text.
        missing: shown where no value is known.
    """

    name: str
    show: Callable[[Any], str] | None = None
    missing: str = ""

    def text(self, cell: Cell) -> str:
        """A cell as text."""
        if cell is None:
            return self.missing
        return self.show(cell) if self.show else str(cell)


@dataclass(frozen=True)
class Table:
    """Rows of plain values; the columns format them."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    @property
    def texts(self) -> list[list[str]]:
        """The cells as text."""
        return [
            [column.text(cell) for column, cell in zip(self.columns, row, strict=True)]
            for row in self.rows
        ]

    def without_empty_columns(self) -> "Table":
        """The table without columns in which no value is known."""
        places = [i for i in range(len(self.columns)) if any(r[i] is not None for r in self.rows)]
        return Table([self.columns[i] for i in places], [[r[i] for i in places] for r in self.rows])


def score_table(entries: Sequence[Entry], names: Mapping[str, str] | None = None) -> Table:
    """One row for each policy: measured perplexities, compared with uniform, and predictions.

    Args:
        names: names to show in the table in place of a policy's own name.
    """
    columns = [
        Column("policy"),
        Column("ratio", percent),
        Column("parameters", millions),
        Column("labelling part", decimal),
        Column("± standard error", decimal),
        Column("against uniform", signed_percent),
        Column("selection part", decimal),
        Column("± standard error, selection", decimal),
        Column("against uniform, selection", str),
        Column("test part", decimal),
        Column("predicted", decimal),
        Column("95 % interval", str),
        Column("nats per token", "{:.4f}".format),
    ]
    rows = [[(names or {}).get(e.policy, e.policy), *_cells(e, entries)] for e in entries]
    return Table(columns, rows).without_empty_columns()


def _cells(entry: Entry, entries: Sequence[Entry]) -> list[Cell]:
    predicted, interval = entry.predicted, (entry.predicted and entry.predicted.interval) or ()
    return [
        entry.ratio,
        entry.parameters,
        *_measured(entry.measured),
        _against_uniform(entry, entries),
        *_measured(entry.selection),
        gain(entry) or None,
        entry.test.perplexity if entry.test else None,
        predicted.perplexity if predicted else None,
        " – ".join(map(decimal, interval)) or None,
        entry.measured.nll if entry.measured else None,
    ]


def _measured(score: LogPerplexity | None) -> tuple[float | None, float | None]:
    """A perplexity and its standard error."""
    return (score.perplexity, score.error) if score else (None, None)


def _against_uniform(entry: Entry, entries: Sequence[Entry]) -> float | None:
    even = uniform_at(entry.ratio, entries)
    if not (even and entry.measured) or entry.policy in ("dense", "uniform"):
        return None
    return change(entry.measured.perplexity, even.perplexity)


def times_table(seconds: Mapping[str, float]) -> Table:
    """The duration of each stage, and the total."""
    rows = [*seconds.items(), ("total", sum(seconds.values()))]
    return Table([Column("stage"), Column("time", duration)], rows)


def accuracy_table(metrics: Mapping[str, float], bands: Sequence[float]) -> Table:
    """A predictor's scores with their intervals, over all ratios and for each band.

    Args:
        metrics: scores by name, as `ppf.predictor.scores.with_intervals` returns them.
        bands: edges of the bands, ascending pruning ratios.
    """
    parts = {"all ratios": "", **dict(endings(bands))}
    rows: list[list[Cell]] = []
    for name, words in SCORES.items():
        rows.append([words])
        for ending in parts.values():
            key = name + ending
            rows[-1] += [metrics.get(key), _interval(metrics, key)]
    columns = [
        column
        for part in parts
        for column in (
            Column(part, "{:.4g}".format, missing="too few"), Column(f"{part}, 90 % interval")
        )
    ]  # fmt: skip
    return Table([Column("score on policies outside the fit"), *columns], rows)


def _interval(metrics: Mapping[str, float], name: str) -> str | None:
    ends = [metrics.get(f"{name}_{end}") for end in ("low", "high")]
    return None if None in ends else " – ".join(f"{end:.4g}" for end in ends)


SCORES = {
    "equal_ratio": "Kendall at equal ratio",
    "kendall": "Kendall",
    "ratio_alone": "Kendall of the ratio alone",
    "spearman": "Spearman",
    "nmse": "normalised MSE",
    "mae": "mean absolute error, nats",
    "median": "median absolute error, nats",
    "coverage": "coverage of the 90 % interval",
    "regret": "regret of the best predicted policy, nats",
    "policies": "number of policies",
}
"""Score of a predictor → its name for people."""


def print_summary(
    scores: Table,
    measured_on: str,
    seconds: Mapping[str, float],
    paths: Mapping[str, str | Path],
    *,
    target: Console = console,
) -> None:
    """Prints the perplexities, the duration of each stage, and the paths of the files.

    If the output is not a terminal, no line is cut or wrapped, so that programs can read it.

    Args:
        scores: the perplexities.
        measured_on: a sentence about the text that they were measured on.
        seconds: duration of each stage.
        paths: written files, by their purpose.
    """
    print_table(scores, target=target)
    print_line(measured_on, target=target)
    print_table(times_table(seconds), target=target)
    width = max(map(len, paths), default=0)
    for name, path in paths.items():
        print_line(f"{name:<{width}}  {path}", target=target)


def print_table(table: Table, *, target: Console = console) -> None:
    """Prints a table; at its full width if the output is not a terminal."""
    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.columns:
        drawn.add_column(column.name, justify="right" if column.show else "left")
    for row in table.texts:
        drawn.add_row(*map(escape, row), style="bold" if row[0].startswith("PPF") else None)
    if not target.is_terminal:
        roomy = target.options.update(max_width=10_000)
        drawn.width = Measurement.get(target, roomy, drawn).maximum
    target.print(drawn, crop=target.is_terminal)


def print_line(text: str, *, target: Console = console) -> None:
    """Prints one line as it is."""
    target.print(text, markup=False, highlight=False, soft_wrap=True)
