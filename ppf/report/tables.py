"""Tables of results: for the console, the page, CSV files and the loggers."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table as RichTable

from ppf.errors import printable
from ppf.predictor.scores import endings
from ppf.progress import console
from ppf.report.scores import decimal, duration

Cell = str | float | None
"""A value of a table; None: not known."""


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        name: its heading.
        show: makes text of a number; None: the column holds text.
        joins: readers see the text joined to the one on its left, as in "{} ± {}"; None: they see a
            column of its own.
    """

    name: str
    show: Callable[[Any], str] | None = None
    joins: str | None = None

    def text(self, cell: Cell) -> str:
        """A cell as text."""
        if cell is None:
            return ""
        return self.show(cell) if self.show else str(cell)


@dataclass(frozen=True)
class Table:
    """Rows of plain values; the columns format them. Every number has a column of its own."""

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

    @property
    def markdown(self) -> str:
        """The table in Markdown."""
        escaped = [
            [printable(text).replace("|", "\\|") for text in line]
            for line in (self.names, *self.texts)
        ]
        lines = [escaped[0], ["---"] * len(self.names), *escaped[1:]]
        return "".join(f"| {' | '.join(line)} |\n" for line in lines)

    @property
    def csv(self) -> str:
        """The plain values, separated by commas, with the names in the first line."""
        target = StringIO()
        csv.writer(target).writerows([self.names, *self.rows])
        return target.getvalue()

    @property
    def shown(self) -> "Table":
        """The table for readers: texts, with errors and intervals beside their values."""
        own = [column for column in self.columns if not column.joins]
        rows = []
        for texts in self.texts:
            row: list[Cell] = []
            for column, text in zip(self.columns, texts, strict=True):
                if not column.joins:
                    row.append(text)
                elif text:
                    row[-1] = column.joins.format(row[-1], text)
            rows.append(row)
        return Table([replace(column, show=column.show and str) for column in own], rows)

    def without_empty_columns(self) -> "Table":
        """The table without columns in which no value is known."""
        known = [i for i in range(len(self.columns)) if any(r[i] is not None for r in self.rows)]
        rows = [[row[i] for i in known] for row in self.rows]
        return Table([self.columns[i] for i in known], rows)


def error(name: str, show: Callable[[Any], str] = decimal) -> Column:
    """The standard error of the column before it."""
    return Column(name, show, joins="{} ± {}")


def interval(name: str, show: Callable[[Any], str] = decimal) -> tuple[Column, Column]:
    """The ends of an interval of the column before them."""
    low = Column(f"{name}, low", show, joins="{} ({}")
    return low, Column(f"{name}, high", show, joins="{} – {})")


def times_table(seconds: Mapping[str, float]) -> Table:
    """The duration of each part of a run, and the total."""
    rows = [*seconds.items(), ("total", sum(seconds.values()))]
    return Table([Column("part of the run"), Column("time", duration)], rows)


def accuracy_table(metrics: Mapping[str, float]) -> Table:
    """A predictor's scores with their intervals, over all ratios and for each band.

    Args:
        metrics: scores by name, as `ppf.predictor.scores.with_intervals` returns them.
    """
    columns = [Column("score on policies outside the fit")]
    rows: list[list[Cell]] = [[words] for words in SCORES.values()]
    for part, ending in {"all ratios": "", **dict(endings())}.items():
        columns += [Column(part, _digits), *interval(part, _digits)]
        for row, name in zip(rows, SCORES, strict=True):
            row += [metrics.get(f"{name}{ending}{end}") for end in ("", "_low", "_high")]
    return Table(columns, rows).without_empty_columns()


_digits = "{:.4g}".format
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


def print_table(table: Table, *, target: Console = console) -> None:
    """Prints a table as readers see it; at its full width if the output is not a terminal."""
    shown = table.shown
    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for place, column in enumerate(shown.columns):
        widest = max((len(row[place]) for row in shown.texts), default=0)
        heading = escape(printable(column.name))
        drawn.add_column(heading, justify="right" if column.show else "left", min_width=widest)
    for row in shown.texts:
        drawn.add_row(*(escape(printable(text)) for text in row))
    if not target.is_terminal:
        whole = target.options.update(max_width=10_000)
        drawn.width = Measurement.get(target, whole, drawn).maximum
    target.print(drawn, crop=target.is_terminal)


def print_line(text: str, *, target: Console = console) -> None:
    """Prints one line as it is, at any width."""
    target.print(text, markup=False, highlight=False, soft_wrap=True)
