"""The page of a run: one sentence, then sections of figures, tables and facts, in one HTML file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from ppf.artefacts import draft
from ppf.report.style import FAINT, INK, PAPER, svg
from ppf.report.tables import Table


@dataclass(frozen=True)
class ReportSection:
    """A section of the page.

    Args:
        title: its heading.
        note: what the figure or the table shows, and what it was measured on.
        name: what loggers call the figure and the table; empty: they do not get them.
    """

    title: str
    note: str = ""
    name: str = ""
    figure: Figure | None = None
    table: Table | None = None


@dataclass(frozen=True)
class Page:
    """A report.

    Args:
        title: heading of the page.
        headline: the result in one sentence.
        sections: in the order in which they are read.
        about: the command that repeats the run, and where they are known, its settings, its machine
            and useful next commands (purpose → command), with the names of a summary.json.
    """

    title: str
    headline: str
    sections: Sequence[ReportSection]
    about: Mapping[str, Any]

    @property
    def tables(self) -> dict[str, Table]:
        """The tables that loggers get, by name."""
        return {s.name: s.table for s in self.sections if s.name and s.table}


def write_page(path: str | Path, page: Page) -> None:
    """Writes the page to `path` as a file that needs no network; a link there is replaced."""
    environment = Environment(
        loader=PackageLoader("ppf.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline"] = _inline
    text = environment.get_template("report.html.j2").render(page=page)
    with draft(Path(path)) as made:
        made.write_text(text, encoding="utf-8")


def _inline(figure: Figure) -> Markup:
    """The figure as SVG that uses the colours of the page, with its width as a CSS variable."""
    text = svg(figure)
    for colour, name in ((INK, "ink"), (FAINT, "line"), (PAPER, "paper")):
        text = text.replace(colour, f"var(--{name})")
    width = round(figure.get_figwidth() * 96)
    return Markup(text.replace("<svg ", f'<svg style="--width:{width}px" role="img" ', 1))
