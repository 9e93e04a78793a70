"""Plots of a multirun: a figure against the pruning ratio, or a ranking of the jobs."""

import re
from collections.abc import Mapping, Sequence
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppf.errors import PPFError
from ppf.report.headline import even_pruning
from ppf.report.scores import percent
from ppf.report.style import (
    GREY,
    NAMED,
    OTHERS,
    legend_above,
    log_scale,
    percents,
    styled,
)
from ppf.report.sweep import Group, words

SIZE = "matrices_mib"
"""The figure of searches whose budget counts bytes."""
BASELINES = {"uniform": even_pruning(False), "best_rule": "the best allocation rule"}
"""Prefix of the figures of policies that a search compares with → name of the policy."""
_MOST = 40  # jobs in a ranking
# Ratio of highest to lowest perplexity of equal policies that several machines have measured.
_EQUAL = 1.01
_WIDE = 3  # ratio of highest to lowest value above which the axis is logarithmic
_LONG = 44  # characters of a name that leave no room for two columns
_UNNAMED = "default"  # a line of jobs without the overrides of the others
_OPTION = re.compile(r"(?!(?i:true|false|null)$)[A-Za-z][\w/-]*")


def sweep_figure(
    found: Sequence[Group], first: str, names: Mapping[str, str] | None = None
) -> Figure:
    """The results of jobs; with error bars over seeds.

    Args:
        found: groups that have the figure.
        first: name of the figure.
        names: names of the lines to draw, and what to call them; None: all lines.

    Raises:
        PPFError: there is no line of a name.
    """
    with styled():
        figure = Figure(figsize=(6.6, 4.4), layout="constrained")
        axes = figure.add_subplot()
        if found and all(isinstance(group.key.get("ratio"), float) for group in found):
            _against_ratio(axes, found, first, names)
        else:
            if names:
                raise PPFError("only plots against the pruning ratio have lines: leave out --line.")
            _ranked(axes, found, first)
            figure.set_figheight(1.2 + 0.22 * min(len(found), _MOST))
    return figure


def _against_ratio(
    axes: Axes, found: Sequence[Group], first: str, names: Mapping[str, str] | None
) -> None:
    """A line for each combination of the other overrides; against size, where it is known."""
    sized = all(group.values(SIZE) for group in found)
    lines = _lines(found)
    if unknown := [name for name in names or () if name not in lines]:
        raise PPFError(
            f"there is no line {unknown[0]!r}: give one of {', '.join(map(repr, lines))}."
        )
    names = names or {name: name for name in lines}
    for place, (line, name) in enumerate(names.items()):
        same = sorted(lines[line], key=lambda group: group.key["ratio"])
        places = [fmean(g.values(SIZE)) if sized else 100 * g.key["ratio"] for g in same]
        colour, style = OTHERS[place % len(OTHERS)], "-o" if place < len(OTHERS) else "--s"
        axes.errorbar(
            places,
            [fmean(group.values(first)) for group in same],
            _spread(same, first),
            fmt=style, color=colour, ms=4, lw=1.3, capsize=2.5, label=name or _UNNAMED,
        )  # fmt: skip
    if not sized:
        _baselines(axes, found, first)
        axes.xaxis.set_major_formatter(percents(1))
    label = "MiB of prunable matrices in the file" if sized else "pruning ratio"
    axes.set(xlabel=label, ylabel=_label(first, found))
    low, high = axes.dataLim.intervaly
    if low > 0 and high > _WIDE * low:
        log_scale(axes)
    shown = axes.get_legend_handles_labels()[1]
    if shown != [_UNNAMED]:
        legend_above(axes, columns=1 if max(map(len, shown)) > _LONG else 2)


def _lines(found: Sequence[Group]) -> dict[str, list[Group]]:
    """The groups of each line, by a short name if no other line has the same one."""
    named: dict[str, list[Group]] = {}
    for group in found:
        named.setdefault(group.name, []).append(group)
    short = [_short(groups[0]) for groups in named.values()]
    unique = len(set(short)) == len(short)
    return dict(zip(short if unique else named, named.values(), strict=True))


def _short(group: Group) -> str:
    """For example "ppo, count=256" for agent=ppo and labels.count=256."""
    given = zip(group.key, group.texts, strict=True)
    return ", ".join(_word(key, text) for key, text in given if key != "ratio" and text)


def _word(key: str, text: str) -> str:
    """The option of a config group, or the last part of the key with its value."""
    is_option = "." not in key and _OPTION.fullmatch(text)
    return text.rpartition("/")[2] if is_option else f"{key.rpartition('.')[2]}={text}"


def _baselines(axes: Axes, found: Sequence[Group], first: str) -> None:
    """The policies that searches compare with, where all jobs of a ratio have the same ones."""
    for prefix, name in BASELINES.items():
        values: dict[float, list[float]] = {}
        for group in found:
            values.setdefault(group.key["ratio"], []).extend(group.values(f"{prefix}_{first}"))
        known = sorted(
            (100 * ratio, fmean(each))
            for ratio, each in values.items()
            if each and max(each) <= _EQUAL * min(each)  # otherwise the jobs prune several models
        )
        if known:
            colour = NAMED.get(prefix, GREY)
            axes.plot(*zip(*known, strict=True), "--", color=colour, lw=1.3, label=name, zorder=1)


def _ranked(axes: Axes, found: Sequence[Group], first: str) -> None:
    """One row for each job, the best one on top; only the best ones, if there are many."""
    best = sorted(found, key=lambda group: fmean(group.values(first)))[:_MOST]
    places, means = range(len(best)), [fmean(group.values(first)) for group in best]
    axes.errorbar(means, places, xerr=_spread(best, first), fmt="o", color=OTHERS[0], ms=5, lw=1.2)
    axes.set_yticks(places, [f"{group.name}{_of_ratio(group)}" for group in best])
    axes.invert_yaxis()
    cut = f"\n(the best {len(best)} of {len(found)})" if len(best) < len(found) else ""
    axes.set_xlabel(f"{_label(first, best)}{cut}")


def _of_ratio(group: Group) -> str:
    ratio = group.key.get("ratio")
    return f", {percent(ratio)}" if isinstance(ratio, float) and ratio else ""


def _label(figure: str, found: Sequence[Group]) -> str:
    """The figure's name and unit, and what the error bars are."""
    unit = ", nats per token" if figure.startswith("nll_") else ""
    repeated = any(len(group.values(figure)) > 1 for group in found)
    bars = "\n(mean and range over seeds)" if repeated and not found[0].interval(figure) else ""
    return f"{words(figure)}{unit}{bars}"


def _spread(groups: Sequence[Group], figure: str) -> list[list[float]]:
    """How far each error bar reaches below and above: the interval, or the range of seeds."""
    below, above = [], []
    for group in groups:
        values = group.values(figure)
        low, high = group.interval(figure) or (min(values), max(values))
        below.append(max(fmean(values) - low, 0.0))
        above.append(max(high - fmean(values), 0.0))
    return [below, above]
