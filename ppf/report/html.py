"""A report as an HTML page: one file that opens without a network."""

from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from ppf.artefacts import draft
from ppf.report.page import Page
from ppf.report.style import FAINT, INK, PAPER, svg


def write_page(path: str | Path, page: Page) -> None:
    """Writes the page to `path`; a link there is replaced, not followed."""
    text = _environment().get_template("report.html.j2").render(page=page)
    with draft(Path(path)) as made:
        made.write_text(text, encoding="utf-8")


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("ppf.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["inline"] = _inline
    return environment


def _inline(figure: Figure) -> Markup:
    """The figure as SVG that uses the colours of the page, with its width as a CSS variable."""
    text = svg(figure)
    for colour, name in ((INK, "ink"), (FAINT, "line"), (PAPER, "paper")):
        text = text.replace(colour, f"var(--{name})")
    width = round(figure.get_figwidth() * 96)
    return Markup(text.replace("<svg ", f'<svg style="--width:{width}px" role="img" ', 1))
