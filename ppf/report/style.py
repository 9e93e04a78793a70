"""Style of all plots; the colours are readable on light and on dark backgrounds."""

from contextlib import AbstractContextManager
from io import BytesIO, StringIO
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from ppf.artefacts import draft

_RC: Any = matplotlib.rc_params_from_file(
    Path(__file__).with_name("ppf.mplstyle"), use_default_template=False
)
INK, FAINT, PAPER = _RC["text.color"], _RC["grid.color"], _RC["figure.facecolor"]
BLUE, ORANGE, GREY = "#3f74d1", "#e0703a", _RC["axes.edgecolor"]
NAMED = {"dense": GREY, "uniform": ORANGE, "PPF": BLUE}
OTHERS = ["#3d9a6b", "#a565c0", "#c9992b", "#4aa3b5", "#c95a7d", "#8a9a35", "#9a6b4f"]
RATIO = LinearSegmentedColormap.from_list("ratio", [BLUE, "#9a63bd", ORANGE])
KEPT = LinearSegmentedColormap.from_list("kept", ["#2b2f77", "#3f74d1", "#9cc3ee", "#eef4fb"])
Look = dict[str, Any]
"""Keyword arguments of what draws."""
NUMBERS = StrMethodFormatter("{x:,.7g}")  # without an exponent up to ten millions
PERCENTS = StrMethodFormatter("{x:.4g} %")
_NARROW = 12  # ratio of highest to lowest value below which the ticks of a log axis are closer
_EVEN = 3  # ratio below which they are even


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
    axes.yaxis.set_major_formatter(NUMBERS)
    axes.yaxis.set_minor_locator(NullLocator())


def legend_above(axes: Axes, columns: int = 3) -> None:
    """A legend above the axes, where it hides no point."""
    handles, names = axes.get_legend_handles_labels()
    axes.figure.legend(handles, names, loc="outside upper left", ncols=columns, borderpad=0)


def png(figure: Figure) -> bytes:
    """The figure as the bytes of a PNG file."""
    target = BytesIO()
    with styled():
        figure.savefig(target, format="png")
    return target.getvalue()


def save_png(figure: Figure, path: str | Path) -> None:
    """Writes the figure as a PNG file; a link at `path` is replaced, not followed."""
    with draft(Path(path)) as made:
        made.write_bytes(png(figure))


def svg(figure: Figure) -> str:
    """The figure as an <svg> element with a transparent background and selectable text."""
    target, nothing = StringIO(), dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with styled():
        figure.savefig(target, format="svg", facecolor="none", metadata=nothing)
    text = target.getvalue()
    return text[text.index("<svg") :]
