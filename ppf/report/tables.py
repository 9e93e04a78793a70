"""Tables of results: for the console, the page and the loggers."""

import csv
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table as RichTable

from ppf.errors import printable
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
        joins: readers see the text joined to the one on its left, as in "{} ± {}"; None: they see a
            column of its own.
        detail: only files have the column; readers do not see it.
    """

    name: str
    show: Callable[[Any], str] | None = None
    missing: str = ""
    joins: str | None = None
    detail: bool = False

    def text(self, cell: Cell) -> str:
        """A cell as text."""
        if cell is None:
            return self.missing
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
        escaped = [[_escaped(text) for text in line] for line in (self.names, *self.texts)]
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
        """The table for readers: texts without details, and errors beside their values."""
        columns = [column for column in self.columns if column.joins is None and not column.detail]
        rows = [list[Cell]() for _ in self.rows]
        for place, column in enumerate(self.columns):
            for row, cells in zip(rows, self.rows, strict=True):
                text = column.text(cells[place])
                if column.detail:
                    continue
                if column.joins is None:
                    row.append(text)
                elif cells[place] is not None:
                    row[-1] = column.joins.format(row[-1], text)
        return Table([replace(column, show=column.show and str) for column in columns], rows)

    def without_empty_columns(self) -> "Table":
        """The table without columns in which no value is known."""
        known = [i for i in range(len(self.columns)) if any(r[i] is not None for r in self.rows)]
        return self._only(known)

    def first(self, count: int) -> "Table":
        """The table with its first columns only."""
        return self._only(range(count))

    def _only(self, places: Sequence[int]) -> "Table":
        return Table([self.columns[i] for i in places], [[r[i] for i in places] for r in self.rows])


def error(name: str, show: Callable[[Any], str] = decimal) -> Column:
    """The standard error of the column before it."""
    return Column(name, show, joins="{} ± {}")


def interval(name: str, show: Callable[[Any], str] = decimal) -> tuple[Column, Column]:
    """The ends of an interval of the column before them."""
    low = Column(f"{name}, low", show, joins="{} ({}")
    return low, Column(f"{name}, high", show, joins="{} – {})")


Values = dict[Column, Callable[[Entry], Cell]]
"""Columns of a table of policies, and what they show of a policy."""


def score_table(entries: Sequence[Entry], names: Mapping[str, str] | None = None) -> Table:
    """One row for each policy: perplexities on the labelling part, and predictions.

    Args:
        names: names to show in the table in place of a policy's own name.
    """
    low, high = interval("predicted")
    return _tabulated(
        entries,
        _policies(entries, names)
        | {Column("parameters", millions, detail=True): lambda e: e.parameters}
        | {Column("labelling part", decimal): lambda e: _perplexity(e.measured)}
        | _against_uniform(entries)
        | {
            Column("test part", decimal): lambda e: _perplexity(e.test),
            Column("predicted", decimal): lambda e: _perplexity(e.predicted),
            low: lambda e: e.predicted and e.predicted.interval and e.predicted.interval[0],
            high: lambda e: e.predicted and e.predicted.interval and e.predicted.interval[1],
            Column("nats per token", "{:.4f}".format, detail=True): (
                lambda e: e.measured and e.measured.nll
            ),
        },
    )


def selection_table(entries: Sequence[Entry], names: Mapping[str, str] | None = None) -> Table:
    """One row for each policy that was measured on the selection part; see `score_table`."""
    return _tabulated(
        [entry for entry in entries if entry.selection],
        _policies(entries, names)
        | _measured("selection part", "selection")
        | {
            Column("against uniform", signed_percent): lambda e: (gain(e) or (None, None))[0],
            error("± standard error, against uniform", percent): (
                lambda e: (gain(e) or (None, None))[1]
            ),
        }
        | _measured("labelling part", "measured"),
    )


def printed_scores(entries: Sequence[Entry], names: Mapping[str, str] | None = None) -> Table:
    """The most important columns of both tables, which fit into 80 characters."""
    return _tabulated(
        entries,
        _policies(entries, names)
        | _measured("labelling part", "measured")
        | _against_uniform(entries)
        | _measured("selection part", "selection")
        | {
            Column("test part", decimal): lambda e: _perplexity(e.test),
            Column("predicted", decimal): lambda e: _perplexity(e.predicted),
        },
    )


def _tabulated(entries: Sequence[Entry], values: Values) -> Table:
    rows = [[value(entry) for value in values.values()] for entry in entries]
    return Table(list(values), rows).without_empty_columns()


def _policies(entries: Sequence[Entry], names: Mapping[str, str] | None) -> Values:
    """Names and ratios; readers see the size in place of the ratio if the budget counts bytes."""
    sized = any(entry.bytes is not None for entry in entries)
    return {
        Column("policy"): lambda e: (names or {}).get(e.policy, e.title),
        Column("ratio", percent, detail=sized): lambda e: e.ratio,
        Column("matrices, MiB", "{:,.1f}".format): (
            lambda e: None if e.bytes is None else e.bytes / 2**20
        ),
    }


def _measured(name: str, kind: str) -> Values:
    """A measured perplexity and its standard error.

    Args:
        kind: attribute of an entry.
    """
    return {
        Column(name, decimal): lambda e: _perplexity(getattr(e, kind)),
        error(f"± standard error, {name}"): lambda e: getattr(getattr(e, kind), "error", None),
    }


def _perplexity(score: LogPerplexity | None) -> float | None:
    return score.perplexity if score else None


def _against_uniform(entries: Sequence[Entry]) -> Values:
    """The change of the perplexity on the labelling part; none for the uniform policy itself."""

    def changed(entry: Entry) -> float | None:
        even = uniform_at(entry.ratio, entries)
        if not (even and entry.measured) or entry.policy == "dense" or even == entry.measured:
            return None
        found = change(entry.measured.perplexity, even.perplexity)
        return found if math.isfinite(found) else None

    return {Column("against uniform", signed_percent): changed}


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
    show = "{:.4g}".format
    columns = [Column("score on policies outside the fit")]
    rows: list[list[Cell]] = [[words] for words in SCORES.values()]
    for part, ending in parts.items():
        columns += [Column(part, show, missing="too few"), *interval(part, show)]
        for row, name in zip(rows, SCORES, strict=True):
            row += [metrics.get(f"{name}{ending}{end}") for end in ("", "_low", "_high")]
    return Table(columns, rows).without_empty_columns()


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
    next_commands: Mapping[str, str],
    *,
    target: Console = console,
) -> None:
    """Prints perplexities, the duration of each stage, paths of files, and what to do next.

    If the output is not a terminal, no line is cut or wrapped, so that programs can read it.

    Args:
        scores: the perplexities.
        measured_on: a sentence about the text that they were measured on.
        seconds: duration of each stage.
        paths: written files, by their purpose.
        next_commands: commands that go on from here, by their purpose.
    """
    print_table(scores, target=target)
    print_line(measured_on, target=target)
    print_table(times_table(seconds), target=target)
    width = max(map(len, paths), default=0)
    for name, path in paths.items():
        print_line(f"{name:<{width}}  {path}", target=target)
    for purpose, command in next_commands.items():
        print_line(f"{purpose}: {command}", target=target)


def print_table(table: Table, *, target: Console = console) -> None:
    """Prints a table as readers see it; at its full width if the output is not a terminal.

    On a terminal that is too narrow, headings are wrapped, then the last columns are left out.
    """
    table, names = table.shown, table.shown.names
    drawn = _drawn(table)
    if target.is_terminal:
        for wrap in _WRAPS:
            if _width(drawn, target) > target.width:
                drawn = _drawn(table, wrap)
        while _width(drawn, target) > target.width and len(table.columns) > 1:
            table = table.first(len(table.columns) - 1)
            drawn = _drawn(table, _WRAPS[-1])
    drawn.width = _width(drawn, target)
    target.print(drawn, crop=target.is_terminal)
    if left_out := names[len(table.columns) :]:
        print_line(f"This terminal is too narrow for: {', '.join(left_out)}.", target=target)


_WRAPS = (14, 1)  # widths of headings, in characters; "labelling part" stays on one line at first


def _drawn(table: Table, wrap: int = 1000) -> RichTable:
    """A table whose headings are wrapped at a width, or at that of their column's cells."""
    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for place, column in enumerate(table.columns):
        widest = max((len(row[place]) for row in table.texts), default=0)
        words = textwrap.wrap(column.name, max(wrap, widest), break_long_words=False)
        heading = "\n".join(escape(printable(word)) for word in words)
        drawn.add_column(heading, justify="right" if column.show else "left")
    for row in table.texts:
        drawn.add_row(
            *(escape(printable(text)) for text in row),
            style="bold" if row[0].startswith("PPF") else None,
        )
    return drawn


def _width(drawn: RichTable, target: Console) -> int:
    """The width at which nothing is cut."""
    return Measurement.get(target, target.options.update(max_width=10_000), drawn).maximum


def print_line(text: str, *, target: Console = console) -> None:
    """Prints one line as it is."""
    target.print(text, markup=False, highlight=False, soft_wrap=True)


def _escaped(text: str) -> str:
    """A text as a cell of a table in Markdown."""
    return printable(text).replace("|", "\\|")
