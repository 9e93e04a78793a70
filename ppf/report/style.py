"""Style of all plots; the colours are readable on light and on dark backgrounds."""

from contextlib import AbstractContextManager
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.cm import ScalarMappable
from matplotlib.colorbar import Colorbar
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from ppf.artefacts import draft

INK, FAINT, PAPER = "#24292f", "#d4d9e0", "#fefefe"
BLUE, ORANGE, GREY = "#3f74d1", "#e0703a", "#8a919c"
NAMED = {"dense": GREY, "uniform": ORANGE, "PPF": BLUE}
OTHERS = ["#3d9a6b", "#a565c0", "#c9992b", "#4aa3b5", "#c95a7d", "#8a9a35", "#9a6b4f"]
RATIO = LinearSegmentedColormap.from_list("ratio", [BLUE, "#9a63bd", ORANGE])
KEPT = LinearSegmentedColormap.from_list("kept", ["#2b2f77", "#3f74d1", "#9cc3ee", "#eef4fb"])
Look = dict[str, Any]
"""Keyword arguments of what draws."""
_DPI = 150
_NARROW = 12  # ratio of highest to lowest value below which the ticks of a log axis are closer
_EVEN = 3  # ratio below which they are even
_NO_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))
_RC: dict[Any, Any] = {
    "svg.fonttype": "none",  # keeps text as text: it can be selected, and uses the page's font
    "svg.hashsalt": "ppf",
    "text.parse_math": False,  # overrides may contain dollar signs
    "font.size": 8.5,
    "axes.titlesize": "medium",
    "legend.fontsize": "medium",
    **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
    "legend.frameon": False,
    "axes.edgecolor": GREY,
    "axes.facecolor": "none",
    "figure.facecolor": PAPER,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
}


def styled() -> AbstractContextManager[None]:
    """A context with PPF's style, in which figures are created and drawn."""
    return matplotlib.rc_context(_RC)


def log_scale(axes: Axes) -> None:
    """A logarithmic y axis whose ticks are plain numbers; after all lines are drawn."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    subs = (1, 1.5, 2, 3, 4, 6, 8) if high < _NARROW * low else (1, 2, 5)
    even = high < _EVEN * low
    axes.yaxis.set_major_locator(MaxNLocator(6) if even else LogLocator(10, subs=subs))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
    axes.yaxis.set_minor_locator(NullLocator())


def plain(value: float) -> str:
    """The text of a tick, without an exponent up to ten millions: "0.25", "10,000"."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.6g}"


def percents(scale: float) -> FuncFormatter:
    """Tick labels in per cent, with as many decimals as a tick needs: "2.5 %", "10 %".

    Args:
        scale: 100 if the values are shares, 1 if they are in per cent.
    """
    return FuncFormatter(lambda value, _: f"{round(scale * value, 6) + 0.0:.4g} %")


def legend_above(axes: Axes, columns: int = 3) -> None:
    """A legend above the axes, where it hides no point."""
    handles, names = axes.get_legend_handles_labels()
    axes.figure.legend(handles, names, loc="outside upper left", ncols=columns, borderpad=0)


def colour_bar(axes: Axes, drawn: ScalarMappable, label: str, **look: Any) -> Colorbar:
    """The scale of the colours of what was drawn, beside the axes."""
    figure: Any = axes.figure
    bar = figure.colorbar(drawn, ax=axes, label=label, **{"pad": 0.02, "aspect": 30} | look)
    bar.outline.set_visible(False)
    return bar


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    target = BytesIO()
    with styled():
        FigureCanvasAgg(figure).print_figure(target, format="png", dpi=_DPI, facecolor=PAPER)
    return target.getvalue()


def save_png(figure: Figure, path: str | Path) -> None:
    """Writes the figure as a PNG file; a link at `path` is replaced, not followed."""
    with draft(Path(path)) as made:
        made.write_bytes(png(figure))


def svg(figure: Figure) -> str:
    """The figure as an <svg> element with a transparent background and selectable text."""
    target = StringIO()
    with styled():
        canvas = FigureCanvasSVG(figure)
        canvas.print_figure(target, format="svg", facecolor="none", metadata=_NO_METADATA)
    text = target.getvalue()
    return text[text.index("<svg") :]
