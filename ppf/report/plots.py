"""Plots of runs. Each function takes plain numbers and returns a figure, without a display."""

import math
from collections.abc import Mapping, Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ppf.policy_search.verify import CANDIDATE
from ppf.report.style import (
    BLUE,
    GREY,
    INK,
    KEPT,
    NAMED,
    ORANGE,
    OTHERS,
    PAPER,
    RATIO,
    legend_above,
    log_scale,
    percents,
    plain,
    styled,
)

PolicyRows = Sequence[Mapping[str, Any]]
"""Policies with their scores, as in summary.json."""
Style = dict[str, Any]
_STRIP = 32  # most layers in one row of a heatmap
_CLOCKS = ("step", "epoch", "time", "round")
_PAIR = (4.9, 3.7)  # inches: legible beside another figure, and on a telephone
_FEW = 25  # curves with fewer points show each point


def scatter(
    predicted: Sequence[float],
    std: Sequence[float],
    measured: Sequence[float],
    ratio: Sequence[float],
    searched: PolicyRows = (),
) -> Figure:
    """Predicted against measured log-perplexity (nats per token), one point for each policy.

    Policies with a value that is not finite are left out.

    Args:
        std: standard deviations of the predictions, drawn as thin bars.
        ratio: pruning ratios, drawn as colour.
        searched: policies that a search measured. Rings are its own proposals; squares are uniform
            pruning and the allocation rules.
    """
    points = np.array([measured, predicted, std, ratio], dtype=float).reshape(4, -1)
    x, y, bars, shades = points[:, np.isfinite(points[:2]).all(0)]
    with styled():
        figure = Figure(figsize=(4.9, 4.4), layout="constrained")
        axes = figure.add_subplot()
        axes.errorbar(x, y, bars, fmt="none", ecolor=GREY, elinewidth=0.6, alpha=0.7, zorder=2)
        dots = axes.scatter(x, y, 22, shades, cmap=RATIO, linewidths=0, alpha=0.9, zorder=3)
        _searched(axes, searched)
        low = min(axes.get_xlim()[0], axes.get_ylim()[0])
        high = max(axes.get_xlim()[1], axes.get_ylim()[1])
        axes.plot([low, high], [low, high], color=GREY, lw=1, ls="--", zorder=1)
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
        axes.set(xlabel="measured, nats per token", ylabel="predicted, nats per token")
        if len(x):
            axes.set_title(f"{len(x)} held-out policies", loc="left")
            bar = figure.colorbar(dots, ax=axes, label="pruning ratio", pad=0.02, aspect=30)
            bar.outline.set_visible(False)
            bar.formatter = percents(100)
    return figure


def _searched(axes: Axes, rows: PolicyRows) -> None:
    """The policies that a search measured, with their standard deviations."""
    for proposed, marker, name, colour in (
        (True, "o", "proposed by the search", INK),
        (False, "s", "uniform and rules", ORANGE),
    ):
        both = [
            (row["measured"]["nll"], row["predicted"]["nll"], row["predicted"]["std"])
            for row in rows
            if row["policy"].startswith(("PPF", CANDIDATE)) == proposed
        ]
        if both:
            x, y, bars = np.array(both, dtype=float).T
            style: Style = {"facecolors": "none", "edgecolors": colour, "zorder": 4}
            axes.errorbar(x, y, bars, fmt="none", ecolor=colour, elinewidth=0.7, zorder=4)
            axes.scatter(x, y, 44, marker=marker, label=name, **style)
    if rows:
        legend_above(axes)


def policy_heatmap(shares: Mapping[str, Mapping[str, float]]) -> Figure:
    """Share of its units that each site keeps, in per cent.

    Columns are layers. Rows are blocks; the policies are drawn below each other. Models of more
    than 32 layers are drawn in several strips of equal length.

    Args:
        shares: policy → site, as in "0.attention" → share.
    """
    places = {site: site.partition(".") for site in next(iter(shares.values()))}
    blocks = list(dict.fromkeys(block for _, _, block in places.values()))
    layers = 1 + max(int(layer) for layer, _, _ in places.values())
    share = np.full((len(blocks) * len(shares), layers), np.nan)
    for place, kept in enumerate(shares.values()):
        for site, value in kept.items():
            layer, _, block = places[site]
            share[blocks.index(block) * len(shares) + place, int(layer)] = value
    rows = [f"{block}, {name}" for block in blocks for name in shares]
    strips = math.ceil(layers / _STRIP)
    length = math.ceil(layers / strips)
    with styled():
        height = 0.75 + strips * (0.3 * len(rows) + 0.38)
        figure = Figure(figsize=(max(3.4, 2.3 + 0.33 * length), height), layout="constrained")
        grid = figure.subplots(strips, 1, squeeze=False)[:, 0]
        for strip, axes in enumerate(grid):
            first = strip * length
            mesh = _strip(axes, share[:, first : first + length], first, length)
            axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
        grid[-1].set_xlabel("layer")
        bar = figure.colorbar(mesh, ax=list(grid), label="kept", pad=0.01, fraction=0.03, aspect=12)
        bar.outline.set_visible(False)
        bar.formatter = percents(100)
        bar.locator = MaxNLocator(2)
    return figure


def _strip(axes: Axes, share: np.ndarray, first: int, length: int) -> QuadMesh:
    """Draws the layers from `first` on; a short last strip leaves room up to `length`."""
    rows, layers = share.shape
    mesh = axes.pcolormesh(share, cmap=KEPT, vmin=0, vmax=1, edgecolors=PAPER, linewidth=1.2)
    text: Style = {"ha": "center", "va": "center", "size": 7.5}
    for row, layer in zip(*np.nonzero(np.isfinite(share)), strict=True):
        value = share[row, layer]
        colour = "white" if value < 0.5 else "#1b2a4a"
        axes.text(layer + 0.5, row + 0.5, f"{100 * value:.0f}", color=colour, **text)
    axes.set_xticks(np.arange(layers) + 0.5, [str(first + layer) for layer in range(layers)])
    axes.set(xlim=(0, length), ylim=(rows, 0))
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return mesh


def curves(rows: PolicyRows) -> Figure:
    """Training curves: one small plot for each metric over the rows' `step`.

    A dotted line marks where a new `round` begins. PolicyRows may omit metrics.
    """
    names = [name for name in dict.fromkeys(chain.from_iterable(rows)) if name not in _CLOCKS]
    series = {}
    for name in names:
        points = np.array([(row["step"], row.get(name)) for row in rows], dtype=float)
        series[name] = points[np.isfinite(points).all(1)]
    starts = [b["step"] for a, b in pairwise(rows) if b.get("round") != a.get("round")]
    columns = min(3, len(series)) or 1
    lines = math.ceil(len(series) / columns) or 1
    with styled():
        figure = Figure(figsize=(3.4 * columns, 2.1 * lines), layout="constrained")
        for place, (name, points) in enumerate(series.items(), 1):
            axes = figure.add_subplot(lines, columns, place)
            marker = "o" if len(points) < _FEW else ""
            axes.plot(points[:, 0], points[:, 1], color=BLUE, lw=1.4, marker=marker, ms=3)
            for start in starts:
                axes.axvline(start, color=GREY, lw=0.8, ls=":", zorder=1)
            axes.set_title(name.replace("_", " "), loc="left")
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
            if place > len(series) - columns:
                axes.set_xlabel("iteration")
    return figure


def pareto_front(
    costs: Sequence[str],
    saved: Sequence[Sequence[float]],
    nll: Sequence[float | None],
    front: Sequence[bool],
) -> Figure:
    """Savings of two costs, with perplexity as colour and rings around the Pareto front.

    Policies whose log-perplexity is not finite are left out.

    Args:
        costs: names of the two costs.
        saved: shares of the two costs that each policy saves.
        nll: measured log-perplexity of each policy, nats per token.
        front: whether a policy is on the Pareto front.
    """
    columns = np.array([*zip(*saved, strict=True), nll, front], dtype=float)
    x, y, shades, chosen = columns[:, np.isfinite(columns[2])]
    best = chosen > 0
    limits: Style = {"vmin": shades.min(), "vmax": shades.max(), "cmap": RATIO}
    ring: Style = {"edgecolors": INK, "linewidths": 0.7, "label": "Pareto front"}
    with styled():
        figure = Figure(figsize=_PAIR, layout="constrained")
        axes = figure.add_subplot()
        axes.scatter(x[~best], y[~best], 14, shades[~best], alpha=0.35, linewidths=0, **limits)
        dots = axes.scatter(x[best], y[best], 34, shades[best], **limits, **ring)
        axes.xaxis.set_major_formatter(percents(100))
        axes.yaxis.set_major_formatter(percents(100))
        axes.set(xlabel=f"{costs[0]} saved", ylabel=f"{costs[1]} saved")
        legend_above(axes)
        bar = figure.colorbar(dots, ax=axes, label="nats per token", pad=0.02, aspect=30)
        bar.outline.set_visible(False)
    return figure


def ratio_curve(
    rows: PolicyRows, names: Mapping[str, str], labels: Sequence[Sequence[float | None]], axis: str
) -> Figure:
    """Perplexity against pruning ratio, with one colour for each name of a policy.

    Filled marks are measured; open marks are predicted, with their 95 % interval.

    Args:
        names: what the legend shows in place of a policy's name.
        labels: ratio and log-perplexity of all measured policies, drawn as grey points if their
            perplexity is at most twice the largest one of the rows.
        axis: name of the horizontal axis.
    """
    others = iter(OTHERS * len(rows))
    with styled():
        figure = Figure(figsize=_PAIR, layout="constrained")
        axes = figure.add_subplot()
        top = max((row["measured"]["nll"] or 0.0 for row in rows if "measured" in row), default=0.0)
        near = [
            (100 * ratio, math.exp(nll))
            for ratio, nll in labels
            if ratio is not None and nll is not None and nll <= top + math.log(2)
        ]
        if near:
            x, y = zip(*near, strict=True)
            style: Style = {"color": GREY, "alpha": 0.45, "linewidths": 0, "zorder": 1}
            axes.scatter(x, y, 9, label="all measured policies", **style)
        for name in dict.fromkeys(row["policy"] for row in rows):
            colour = NAMED.get(name) or next(others)
            _of_policy(axes, [row for row in rows if row["policy"] == name], colour)
            axes.plot([], [], color=colour, lw=2, label=names.get(name, name))
        axes.plot([], [], "o", color=INK, ms=5, mfc="none", label="predicted, 95 %")
        log_scale(axes)
        axes.xaxis.set_major_formatter(percents(1))
        axes.set(xlabel=axis, ylabel="perplexity")
        legend_above(axes)
    return figure


def _of_policy(axes: Axes, rows: PolicyRows, colour: str) -> None:
    """Draws the perplexities of one name, joined over the ratios."""
    for kind, fill, line in (("measured", colour, "-"), ("predicted", "none", ":")):
        known = sorted((r for r in rows if r.get(kind, {}).get("perplexity")), key=_ratio)
        if kind == "predicted":
            known = [r for r in known if r["policy"] == "PPF" or "measured" not in r]
        x, y = [100 * r["ratio"] for r in known], [r[kind]["perplexity"] for r in known]
        axes.plot(x, y, "o" + line, color=colour, mfc=fill, ms=5, lw=1.2)
        ends = np.array([r[kind]["interval_95"] for r in known if "interval_95" in r[kind]], float)
        if len(ends) and colour in NAMED.values():  # intervals of the rules would cover each other
            axes.vlines(x, ends[:, 0], ends[:, 1], colors=colour, alpha=0.5)


def _ratio(row: Mapping[str, Any]) -> float:
    return float(row["ratio"])
