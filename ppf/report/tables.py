"""Tables of results: for the console, the page, CSV files and the loggers."""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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
from ppf.records.run import Cell
from ppf.report.numbers import decimal

_ERROR = "± "


@dataclass(frozen=True)
class Table:
    """Rows of plain values. Columns without a known value are left out.

    The column "± x" holds errors of the column x; readers see both in one.

    Args:
        rows: column → value; all rows have the same columns.
        show: column → function that makes text of a number. Other integers have all their digits,
            and other numbers those of a perplexity.
    """

    rows: Sequence[Mapping[str, Cell]]
    show: Mapping[str, Callable[[Any], str]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Columns with a known value."""
        every = self.rows[0] if self.rows else ()
        return [name for name in every if any(row[name] is not None for row in self.rows)]

    @property
    def heads(self) -> dict[str, bool]:
        """The columns that readers see: name → whether it holds numbers."""
        names = [name for name in self.names if not name.startswith(_ERROR)]
        return {n: not any(isinstance(row[n], str) for row in self.rows) for n in names}

    @property
    def texts(self) -> list[list[str]]:
        """The cells that readers see."""
        return [[self._text(row, name) for name in self.heads] for row in self.rows]

    @property
    def markdown(self) -> str:
        """The table as readers see it, in Markdown."""
        rows = [[*self.heads], ["---"] * len(self.heads), *self.texts]
        return "\n".join(f"| {' | '.join(x.replace('|', '') for x in row)} |" for row in rows)

    @property
    def csv(self) -> str:
        """The plain values, separated by commas, with the names in the first line."""
        target = StringIO()
        writer = csv.DictWriter(target, self.names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(self.rows)
        return target.getvalue()

    def _text(self, row: Mapping[str, Cell], name: str) -> str:
        value, error = row[name], row.get(f"{_ERROR}{name}")
        if value is None or isinstance(value, str):
            return value or ""
        show: Callable[[Any], str] = self.show.get(
            name, "{:,}".format if isinstance(value, int) else decimal
        )
        return show(value) if error is None else f"{show(value)} ± {show(error)}"


def accuracy_table(metrics: Mapping[str, float]) -> Table:
    """A predictor's scores with their 90 % intervals, over all ratios and for each band.

    Args:
        metrics: scores by name, as `ppf.predictor.scores.with_intervals` returns them.
    """
    columns = {
        f"{part}{words}": f"{ending}{end}"
        for part, ending in {"all ratios": "", **dict(endings())}.items()
        for words, end in {"": "", ", low": "_low", ", high": "_high"}.items()
    }
    rows = [
        {"score": words, **{column: metrics.get(name + end) for column, end in columns.items()}}
        for name, words in SCORES.items()
    ]
    return Table(rows, dict.fromkeys(columns, "{:.4g}".format))


SCORES = {
    "equal_ratio": "Kendall at equal ratio",
    "kendall": "Kendall",
    "ratio_alone": "Kendall of the ratio alone",
    "nmse": "normalised MSE",
    "mae": "mean absolute error, nats",
    "coverage": "coverage of the 90 % interval",
    "policies": "number of policies",
}
"""Score of a predictor → its name for people."""


def print_table(table: Table, *, target: Console = console) -> None:
    """Prints a table as readers see it; at its full width if the output is not a terminal."""
    drawn = RichTable(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for place, (name, numbers) in enumerate(table.heads.items()):
        widest = max((len(row[place]) for row in table.texts), default=0)
        side = "right" if numbers else "left"
        drawn.add_column(escape(printable(name)), justify=side, min_width=widest)  # type: ignore[arg-type]
    for row in table.texts:
        drawn.add_row(*(escape(printable(text)) for text in row))
    if not target.is_terminal:
        whole = target.options.update(max_width=10_000)
        drawn.width = Measurement.get(target, whole, drawn).maximum
    target.print(drawn, crop=target.is_terminal)
