"""Plots of a search. Each function takes plain numbers and returns a figure, without a display."""

import math
from collections.abc import Mapping, Sequence
from itertools import chain, pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from ppf.report.scores import Entry
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
from ppf.search.verify import CANDIDATE
from ppf.space import Space

HistoryRow = Mapping[str, float | None]
"""Metric → value; None: not reported at this step."""
_STRIP = 32  # most layers in one row of a heatmap
_CLOCKS = ("step", "epoch", "time", "round")
_PAIR = (4.9, 3.7)  # inches: legible beside another figure, and on a telephone
_NAMED = 4  # rounds whose names fit above a small plot
_FEW = 25  # curves with fewer points show each point


def scatter(
    predicted: Sequence[float],
    std: Sequence[float],
    measured: Sequence[float],
    ratio: Sequence[float],
    searched: Sequence[Entry] = (),
) -> Figure:
    """Predicted against measured log-perplexity (nats per token), one point for each policy.

    Policies with a value that is not finite are left out; the title gives their number. If there
    are no held-out policies, only those of a search are shown.

    Args:
        std: standard deviations of the predictions, drawn as thin bars.
        ratio: pruning ratios, drawn as colour.
        searched: policies that a search measured.
    """
    points = np.array([measured, predicted, std, ratio], dtype=float).reshape(4, -1)
    finite = np.isfinite(points[:2]).all(0)
    x, y, bars, shades = points[:, finite]
    with styled():
        figure = Figure(figsize=(4.9, 4.4), layout="constrained")
        axes = figure.add_subplot()
        axes.errorbar(x, y, bars, fmt="none", ecolor=GREY, elinewidth=0.6, alpha=0.7, zorder=2)
        dots = axes.scatter(x, y, 22, shades, cmap=RATIO, linewidths=0, alpha=0.9, zorder=3)
        _searched(axes, searched)
        _identity(axes)
        axes.set(xlabel="measured, nats per token", ylabel="predicted, nats per token")
        if not len(finite):
            return figure
        left_out = np.count_nonzero(~finite)
        note = f", {left_out} not finite" if left_out else ""
        axes.set_title(f"{len(x)} held-out policies{note}", loc="left")
        bar = figure.colorbar(dots, ax=axes, label="pruning ratio", pad=0.02, aspect=30)
        bar.outline.set_visible(False)
        bar.formatter = percents(100)
    return figure


def _searched(axes: Axes, entries: Sequence[Entry]) -> None:
    """The policies that a search measured, with their standard deviations.

    Rings are its own proposals; squares are uniform pruning and the allocation rules.
    """
    proposed = [e.policy == "PPF" or e.policy.startswith(CANDIDATE) for e in entries]
    for own, marker, name in _MARKS:
        both = [
            (entry.measured.nll, entry.predicted.nll, entry.predicted.std)
            for entry, found in zip(entries, proposed, strict=True)
            if found == own and entry.measured and entry.predicted
        ]
        if not both:
            continue
        x, y, bars = np.array(both, dtype=float).T
        colour = INK if own else ORANGE
        axes.errorbar(x, y, bars, fmt="none", ecolor=colour, elinewidth=0.7, zorder=4)
        axes.scatter(
            x, y, 44, marker=marker, facecolors="none", edgecolors=colour, zorder=4, label=name
        )
    if axes.get_legend_handles_labels()[0]:
        legend_above(axes)


_MARKS = ((True, "o", "proposed by the search"), (False, "s", "uniform and rules"))


def _identity(axes: Axes) -> None:
    """Draws the line where predicted equals measured, and makes both axes equal."""
    low = min(axes.get_xlim()[0], axes.get_ylim()[0])
    high = max(axes.get_xlim()[1], axes.get_ylim()[1])
    axes.plot([low, high], [low, high], color=GREY, lw=1, ls="--", zorder=1)
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")


def policy_heatmap(space: Space, policies: Mapping[str, Sequence[int]]) -> Figure:
    """Share of the units that each site keeps, in per cent.

    Columns are layers. Rows are blocks; the policies are drawn below each other. Models of more
    than 32 layers are drawn in several strips of equal length.

    Args:
        space: sites and their units.
        policies: name → units kept at each site.
    """
    share = np.full((len(space.blocks) * len(policies), space.layers), np.nan)
    for place, kept in enumerate(policies.values()):
        for site, count in zip(space.sites, kept, strict=True):
            row = space.blocks.index(site.block) * len(policies) + place
            share[row, site.layer] = count / site.units
    rows = [f"{block}, {name}" if name else block for block in space.blocks for name in policies]
    strips = math.ceil(space.layers / _STRIP)
    length = math.ceil(space.layers / strips)
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
    for row, layer in zip(*np.nonzero(np.isfinite(share)), strict=True):
        value = share[row, layer]
        axes.text(
            layer + 0.5, row + 0.5, f"{100 * value:.0f}", ha="center", va="center", size=7.5,
            color="white" if value < 0.5 else "#1b2a4a",
        )  # fmt: skip
    axes.set_xticks(np.arange(layers) + 0.5, [str(first + layer) for layer in range(layers)])
    axes.set(xlim=(0, length), ylim=(rows, 0))
    axes.grid(False)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return mesh


def curves(rows: Sequence[HistoryRow]) -> Figure:
    """Training curves: one small plot for each metric over the rows' `step`.

    A dotted line marks where a new `round` begins. Without `step`, the row's index is used. Rows
    may omit metrics.
    """
    names = [name for name in dict.fromkeys(chain.from_iterable(rows)) if name not in _CLOCKS]
    series = {name: points for name in names if len(points := _series(rows, name))}
    columns = min(3, len(series)) or 1
    lines = math.ceil(len(series) / columns) or 1
    with styled():
        figure = Figure(figsize=(3.4 * columns, 2.1 * lines), layout="constrained")
        for place, (name, points) in enumerate(series.items(), 1):
            axes = figure.add_subplot(lines, columns, place)
            marker = "o" if len(points) < _FEW else ""
            axes.plot(points[:, 0], points[:, 1], color=BLUE, lw=1.4, marker=marker, ms=3)
            _rounds(axes, rows)
            axes.set_title(in_words(name), loc="left", pad=14)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: plain(value)))
            if place > len(series) - columns:
                axes.set_xlabel("iteration")
    return figure


def _rounds(axes: Axes, rows: Sequence[HistoryRow]) -> None:
    """Marks the first iteration of each round, if there are several; names at most four."""
    numbered = [row for row in rows if row.get("round") is not None]
    changes = [now for before, now in pairwise(numbered) if now["round"] != before["round"]]
    firsts = [*numbered[:1], *changes] if changes else []
    for place, row in enumerate(firsts):
        start = row.get("step") or 0
        axes.axvline(start, color=GREY, lw=0.8, ls=":", zorder=1)
        if place % math.ceil(len(firsts) / _NAMED):
            continue
        axes.annotate(
            f"round {row['round']:g}", (start, 1), xycoords=("data", "axes fraction"),
            xytext=(1, 2), textcoords="offset points", size=7, color=GREY,
        )  # fmt: skip


def in_words(metric: str) -> str:
    """A readable name for a metric of an agent, for example "perplexity_15_30"."""
    if metric in _METRICS:
        return _METRICS[metric]
    name, _, band = metric.partition("_")
    if name == "perplexity" and band:
        return f"perplexity of sampled policies, {band.replace('_', '–')} %"
    return metric.replace("_", " ")


_METRICS = {
    "reward": "gain over uniform pruning, nats",
    "predicted_best": "best prediction, nats per token",
    "predicted_mean": "mean prediction, nats per token",
    "spread": "standard deviation, nats",
    "violation": "largest miss of the budget",
    "entropy": "entropy of the actions",
    "alpha": "weight of the entropy",
    "diversity": "diversity, units",
}


def _series(rows: Sequence[HistoryRow], name: str) -> np.ndarray:
    """Finite points (step, value) of one metric, [points, 2]."""
    points = [(row.get("step", i), row.get(name)) for i, row in enumerate(rows)]
    values = np.array(points, dtype=float).reshape(-1, 2)
    return values[np.isfinite(values).all(1)]


def pareto_front(
    costs: tuple[str, str],
    saved: Sequence[tuple[float, float]],
    nll: Sequence[float],
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
    columns = np.array([*zip(*saved, strict=True), nll, front], dtype=float).reshape(4, -1)
    x, y, shades, chosen = columns[:, np.isfinite(columns[2])]
    best = chosen > 0
    with styled():
        figure = Figure(figsize=_PAIR, layout="constrained")
        axes = figure.add_subplot()
        axes.scatter(x[~best], y[~best], 14, shades[~best], cmap=RATIO, alpha=0.35, linewidths=0)
        limits = (shades.min(initial=np.inf), shades.max(initial=-np.inf)) if len(x) else (0, 1)
        dots = axes.scatter(
            x[best], y[best], 34, shades[best], cmap=RATIO, edgecolors=INK, linewidths=0.7,
            label="Pareto front",
        )  # fmt: skip
        for collection in axes.collections:
            collection.set_clim(*limits)
        axes.xaxis.set_major_formatter(percents(100))
        axes.yaxis.set_major_formatter(percents(100))
        axes.set(xlabel=f"{costs[0]} saved", ylabel=f"{costs[1]} saved")
        legend_above(axes)
        bar = figure.colorbar(dots, ax=axes, label="nats per token", pad=0.02, aspect=30)
        bar.outline.set_visible(False)
    return figure


def ratio_curve(
    entries: Sequence[Entry],
    labels: Sequence[tuple[float, float]] = (),
    axis: str = "pruning ratio",
) -> Figure:
    """Perplexity against pruning ratio, with one colour for each name of a policy.

    Filled marks are measured, with bars of two standard errors where these are known. Open marks
    are predicted, with their 95 % interval.

    Args:
        entries: policies.
        labels: ratio and log-perplexity of labelled policies, drawn as grey points if they are not
            far above the entries.
        axis: name of the horizontal axis.
    """
    names = {entry.policy: entry.title for entry in entries}
    others = iter(OTHERS * len(names))
    known = [score.known for entry in entries for score in entry.scores]
    with styled():
        figure = Figure(figsize=_PAIR, layout="constrained")
        axes = figure.add_subplot()
        _cloud(axes, labels, [score.nll for entry in entries for score in entry.scores])
        for name, title in names.items():
            colour = NAMED.get(name) or next(others)
            _points(axes, [e for e in entries if e.policy == name], colour)
            axes.plot([], [], color=colour, lw=2, label=title)
        if "predicted" in known:
            axes.plot([], [], "o", color=INK, ms=5, label="measured")
            axes.plot([], [], "o", color=INK, ms=5, mfc="none", label="predicted, 95 %")
        log_scale(axes)
        axes.xaxis.set_major_formatter(percents(1))
        axes.set(xlabel=axis, ylabel="perplexity")
        legend_above(axes)
    return figure


def _cloud(axes: Axes, labels: Sequence[tuple[float, float]], shown: Sequence[float]) -> None:
    """Labelled policies as grey points, up to twice the largest perplexity that is shown."""
    top = max(filter(math.isfinite, shown), default=0.0) + math.log(2)
    near = [(100 * ratio, math.exp(nll)) for ratio, nll in labels if nll <= top]
    if near:
        x, y = zip(*near, strict=True)
        axes.scatter(x, y, 9, color=GREY, alpha=0.45, linewidths=0, zorder=1, label="labelled")


def _points(axes: Axes, entries: Sequence[Entry], colour: str) -> None:
    """Draws the log-perplexities of one name, joined over the ratios."""
    for known, fill, line in (("measured", colour, "-"), ("predicted", "none", ":")):
        pairs = [(100 * e.ratio, s) for e in entries for s in e.scores if s.known == known]
        pairs = sorted((p for p in pairs if math.isfinite(p[1].perplexity)), key=lambda p: p[0])
        if not pairs:
            continue
        x, y = [ratio for ratio, _ in pairs], [score.perplexity for _, score in pairs]
        axes.plot(x, y, "o" + line, color=colour, mfc=fill, ms=5, lw=1.2)
        errors = [2 * (score.error or 0) for _, score in pairs]
        if any(errors):
            axes.errorbar(x, y, errors, fmt="none", ecolor=colour, elinewidth=1)
        ends = np.array([score.interval for _, score in pairs if score.interval]).reshape(-1, 2)
        if colour not in NAMED.values():
            continue  # bands of the rules would cover each other
        if len(ends) == 1:
            axes.vlines(x, ends[:, 0], ends[:, 1], colors=colour, alpha=0.5)
        elif len(ends):
            axes.fill_between(x, ends[:, 0], ends[:, 1], color=colour, alpha=0.13, lw=0)
