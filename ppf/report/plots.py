"""Plots of runs. Each function takes plain numbers and returns a figure, without a display."""

import math
from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from operator import itemgetter
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ppf.policy_search.verify import CANDIDATE
from ppf.report import style

PolicyRows = Sequence[Mapping[str, Any]]
"""Policies with their scores, as in summary.json."""
_CLOCKS = ("step", "epoch", "time", "round")


def scatter(held_out: Mapping[str, Sequence[float]], searched: PolicyRows = ()) -> Figure:
    """Predicted against measured log-perplexity (nats per token), one point for each policy.

    Policies with a value that is not finite are left out.

    Args:
        held_out: `measured` and `predicted`, the predictions' standard deviations `std`, drawn as
            thin bars, and pruning ratios, drawn as colour; empty: there are none.
        searched: policies that a search measured. Rings are its own proposals; squares are uniform
            pruning and the allocation rules.
    """
    columns = [held_out.get(name, []) for name in ("measured", "predicted", "std", "ratio")]
    points = np.array(columns, dtype=float)
    x, y, bars, ratios = points[:, np.isfinite(points[:2]).all(0)]
    with style.styled():
        figure = Figure(figsize=(4.9, 4.4), layout="constrained")
        axes = figure.add_subplot()
        thin: style.Look = {"fmt": "none", "elinewidth": 0.6, "alpha": 0.7, "zorder": 2}
        axes.errorbar(x, y, bars, ecolor=style.GREY, **thin)
        dots = axes.scatter(
            x, y, 22, 100 * ratios, cmap=style.RATIO, linewidths=0, alpha=0.9, zorder=3
        )
        _searched(axes, searched)
        low = min(axes.get_xlim()[0], axes.get_ylim()[0])
        high = max(axes.get_xlim()[1], axes.get_ylim()[1])
        axes.plot([low, high], [low, high], color=style.GREY, lw=1, ls="--", zorder=1)
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        axes.set(xlabel="measured, nats per token", ylabel="predicted, nats per token")
        if len(x):
            axes.set_title(f"{len(x)} held-out policies", loc="left")
            bar = figure.colorbar(dots, ax=axes, format=style.PERCENTS, shrink=0.8, aspect=30)
            bar.set_label("pruning ratio")
            bar.outline.set_visible(False)
    return figure


def _searched(axes: Axes, rows: PolicyRows) -> None:
    """The policies that a search measured, with their standard deviations."""
    for proposed, marker, name, colour in (
        (True, "o", "proposed by the search", style.INK),
        (False, "s", "uniform and rules", style.ORANGE),
    ):
        both = [
            (row["measured"]["nll"], row["predicted"]["nll"], row["predicted"]["std"])
            for row in rows
            if row["policy"].startswith(("PPF", CANDIDATE)) == proposed
        ]
        if both:
            x, y, bars = np.array(both, dtype=float).T
            look: style.Look = {"facecolors": "none", "edgecolors": colour, "zorder": 4}
            axes.errorbar(x, y, bars, fmt="none", ecolor=colour, elinewidth=0.7, zorder=4)
            axes.scatter(x, y, 44, marker=marker, label=name, **look)
    if rows:
        style.legend_above(axes)


def policy_heatmap(shares: Mapping[str, Mapping[str, float]]) -> Figure:
    """Share of its units that each site keeps, in per cent.

    Columns are layers. Rows are blocks; the policies are drawn below each other.

    Args:
        shares: policy → site, as in "0.attention" → share.
    """
    places = [site.split(".", 1) for site in next(iter(shares.values()))]
    layers = range(1 + max(int(layer) for layer, _ in places))
    rows = [(block, name) for block in dict.fromkeys(b for _, b in places) for name in shares]
    kept = [[shares[name].get(f"{i}.{block}", np.nan) for i in layers] for block, name in rows]
    percent = 100 * np.array(kept)
    text: style.Look = {"ha": "center", "va": "center", "size": 7.5}
    with style.styled():
        size = max(3.4, 2.3 + 0.33 * len(layers)), 1.13 + 0.3 * len(rows)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        cells: style.Look = {"cmap": style.KEPT, "edgecolors": style.PAPER, "linewidth": 1.2}
        axes.pcolormesh(percent, vmin=0, vmax=100, **cells)
        for row, layer in zip(*np.nonzero(np.isfinite(percent)), strict=True):
            value = percent[row, layer]
            colour = "white" if value < 50 else "#1b2a4a"
            axes.text(layer + 0.5, row + 0.5, f"{value:.0f}", color=colour, **text)
        axes.set_xticks(np.array(layers) + 0.5, [str(layer) for layer in layers])
        axes.set_yticks(np.arange(len(rows)) + 0.5, [", ".join(row) for row in rows])
        axes.set(xlim=(0, len(layers)), ylim=(len(rows), 0), xlabel="layer")
        axes.grid(False)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    return figure


def curves(rows: PolicyRows) -> Figure:
    """Training curves: one small plot for each metric over the rows' `step`.

    A dotted line marks where a new `round` begins. Rows may omit metrics.
    """
    names = [name for name in dict.fromkeys(chain.from_iterable(rows)) if name not in _CLOCKS]
    starts = [b["step"] for a, b in pairwise(rows) if b.get("round") != a.get("round")]
    columns = min(3, len(names)) or 1
    lines = math.ceil(len(names) / columns) or 1
    with style.styled():
        figure = Figure(figsize=(3.4 * columns, 2.1 * lines), layout="constrained")
        for place, name in enumerate(names, 1):
            points = np.array([(row["step"], row.get(name)) for row in rows], dtype=float)
            points = points[np.isfinite(points).all(1)]
            axes = figure.add_subplot(lines, columns, place)
            axes.plot(
                *points.T, color=style.BLUE, lw=1.4, marker="o", ms=3 if len(points) < 25 else 0
            )
            for start in starts:
                axes.axvline(start, color=style.GREY, lw=0.8, ls=":", zorder=1)
            axes.set_title(name.replace("_", " "), loc="left")
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.yaxis.set_major_formatter(style.NUMBERS)
            if place > len(names) - columns:
                axes.set_xlabel("iteration")
    return figure


def ratio_curve(rows: PolicyRows, method: str, labels: Sequence[Sequence[float | None]]) -> Figure:
    """Perplexity against pruning ratio, with one colour for each name of a policy.

    Filled marks are measured; open marks are predicted, with their 95 % interval.

    Args:
        method: what the legend shows in place of "PPF".
        labels: ratio and log-perplexity of all measured policies, drawn as grey points if their
            perplexity is at most twice the largest one of the rows.
    """
    others = iter(style.OTHERS * len(rows))
    with style.styled():
        figure = Figure(figsize=(4.9, 3.7), layout="constrained")
        axes = figure.add_subplot()
        top = max((row["measured"]["nll"] or 0.0 for row in rows if "measured" in row), default=0.0)
        x, y = np.array(labels, dtype=float).reshape(-1, 2).T
        near = y <= top + math.log(2)  # false for NaN
        look: style.Look = {"color": style.GREY, "alpha": 0.45, "linewidths": 0, "zorder": 1}
        axes.scatter(100 * x[near], np.exp(y[near]), 9, label="all measured policies", **look)
        for name in dict.fromkeys(row["policy"] for row in rows):
            colour = style.NAMED.get(name) or next(others)
            _of_policy(axes, [row for row in rows if row["policy"] == name], colour)
            axes.plot([], [], color=colour, lw=2, label=method if name == "PPF" else name)
        axes.plot([], [], "o", color=style.INK, ms=5, mfc="none", label="predicted, 95 %")
        style.log_scale(axes)
        axes.xaxis.set_major_formatter(style.PERCENTS)
        axes.set(xlabel="pruning ratio", ylabel="perplexity")
        style.legend_above(axes)
    return figure


def _of_policy(axes: Axes, rows: PolicyRows, colour: str) -> None:
    """Draws the perplexities of one name, joined over the ratios."""
    for kind, fill, line in (("measured", colour, "-"), ("predicted", "none", ":")):
        known = [row for row in rows if row.get(kind, {}).get("perplexity")]
        known.sort(key=itemgetter("ratio"))
        if kind == "predicted":
            known = [r for r in known if r["policy"] == "PPF" or "measured" not in r]
        x, y = [100 * r["ratio"] for r in known], [r[kind]["perplexity"] for r in known]
        axes.plot(x, y, "o" + line, color=colour, mfc=fill, ms=5, lw=1.2)
        # The intervals of the rules would hide each other.
        if kind == "predicted" and colour in style.NAMED.values():
            low, high = np.array([r[kind]["interval_95"] for r in known], float).reshape(-1, 2).T
            axes.vlines(x, low, high, colors=colour, alpha=0.5)
