"""The page that describes results: a headline, then sections of figures and tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from matplotlib.figure import Figure

from ppf.report.tables import Table


@dataclass(frozen=True)
class Tile:
    """A number at the top of the page.

    Args:
        label: what it is.
        value: the number as text.
        note: how it was determined, as in "measured perplexity".
    """

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class ReportSection:
    """A section of the page.

    Args:
        title: its heading.
        note: what the figure or the table shows, and what it was measured on.
        name: what loggers call the figure and the table; empty: they do not get them.
        figure: None: there is none.
        table: None: there is none.
        facts: names and values; empty: there are none.
        code: facts are shown as code.
        warning: shown before the numbers; empty: none.
        folded: the table is hidden until a reader unfolds it.
        wide: the section takes the whole width of the page.
    """

    title: str
    note: str = ""
    name: str = ""
    figure: Figure | None = None
    table: Table | None = None
    facts: Mapping[str, object] = field(default_factory=dict)
    code: bool = False
    warning: str = ""
    folded: bool = False
    wide: bool = False


@dataclass(frozen=True)
class Page:
    """A report.

    Args:
        title: heading of the page.
        command: the command that repeats the run.
        headline: the result in sentences; the first one is emphasised.
        tiles: the most important numbers.
        sections: in the order in which they are read.
        next_commands: useful next commands: purpose → command.
    """

    title: str
    command: str
    headline: Sequence[str]
    tiles: Sequence[Tile]
    sections: Sequence[ReportSection]
    next_commands: Mapping[str, str]

    @property
    def figures(self) -> dict[str, Figure]:
        """The figures that loggers get, by name."""
        return {s.name: s.figure for s in self.sections if s.name and s.figure}

    @property
    def tables(self) -> dict[str, Table]:
        """The tables that loggers get, by name."""
        return {s.name: s.table for s in self.sections if s.name and s.table}
