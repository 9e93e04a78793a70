"""The files of a multirun: rows, the table, a plot, and a page with both."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppf.artefacts import draft, write_json
from ppf.errors import PPFError
from ppf.progress import warning
from ppf.records.run import RUN
from ppf.report.origin import machine
from ppf.report.page import Page, ReportSection, write_page
from ppf.report.scores import percent
from ppf.report.style import (
    GREY,
    NAMED,
    OTHERS,
    legend_above,
    log_scale,
    percents,
    save_png,
    styled,
)
from ppf.report.sweep import Group, Sweep, read_rows, read_sweep, words
from ppf.report.tables import print_table

_SIZE = "matrices_mib"  # figure of searches whose budget counts bytes
_BASELINES = {"uniform": "uniform pruning", "best_rule": "the best allocation rule"}
_MOST = 40  # jobs in a ranking
_EQUAL = 1.01  # ratio of perplexities of one policy on several machines
_WIDE = 3  # ratio of highest to lowest value above which the axis is logarithmic


def write_sweep(folder: Path) -> dict[str, Path]:
    """Writes results.json, results.csv, results.png and report.html, and prints the table.

    Returns:
        The files, by their purpose.

    Raises:
        PPFError: as for `read_sweep`, or the folder is that of one run, which has its own report.
    """
    if (folder / RUN).is_file():
        raise PPFError(f"{folder} has the results of one run: give a folder of several runs.")
    sweep = read_sweep(folder)
    names = ("results.json", "results.csv", "results.png", "report.html")
    rows, table, plot, report = (folder / name for name in names)
    jobs = len({row["job"] for row in sweep.rows})
    note, figure = "Means over seeds ± half their range, best first.", sweep_figure(sweep)
    page = Page(
        title=f"Multirun {folder.name}",
        command=shlex.join(["python", "-m", "ppf.report", "sweep", str(folder)]),
        headline=f"{jobs} finished jobs; at each ratio the best one comes first.",
        sections=[
            ReportSection("Results", note, figure=figure),
            ReportSection("All jobs", note, table=sweep.table),
            ReportSection("Machine", "That made this page.", facts=machine()),
        ],
    )
    write_json(rows, vars(sweep))
    with draft(table) as made:
        made.write_text(sweep.table.csv, encoding="utf-8")
    save_png(figure, plot)
    write_page(report, page)
    print_table(sweep.table)
    if len(sweep.versions) > 1:
        warning(f"these jobs are from several versions: {'; '.join(sweep.versions)}.")
    return {"rows": rows, "table": table, "plot": plot, "report": report}


def plot_rows(file: Path, names: Mapping[str, str]) -> Path:
    """Draws the rows of a results.json, as results.png beside it.

    Args:
        names: names of the lines to draw, and what to call them; empty: all lines.

    Raises:
        PPFError: the file is damaged, or there is no line of a name.
    """
    path = file.with_suffix(".png")
    save_png(sweep_figure(read_rows(file), names), path)
    return path


def sweep_figure(sweep: Sweep, names: Mapping[str, str] | None = None) -> Figure:
    """The first figure of the jobs against the pruning ratio, or a ranking of the jobs.

    Args:
        names: names of the lines to draw, and what to call them; None: all lines.

    Raises:
        PPFError: there is no line of a name.
    """
    first = sweep.figures[0]
    found = [group for group in sweep.groups if group.mean(first, whole=True) is not None]
    label = words(first)
    if any(len(group.rows) > 1 for group in found):
        label = f"{label}\n(mean and range over seeds)"
    with styled():
        figure = Figure(figsize=(6.6, 4.4), layout="constrained")
        axes = figure.add_subplot()
        if found and all(isinstance(group.ratio, float) for group in found):
            _against_ratio(axes, found, first, names)
            axes.set_ylabel(label)
        else:
            _ranked(axes, found, first)
            axes.set_xlabel(label)
            figure.set_figheight(1.2 + 0.22 * min(len(found), _MOST))
    return figure


def _against_ratio(
    axes: Axes, found: Sequence[Group], first: str, names: Mapping[str, str] | None
) -> None:
    """A line for each combination of the other overrides; against size, where it is known."""
    sized = all(group.values(_SIZE) for group in found)
    lines = _lines(found)
    for place, (line, name) in enumerate((names or {name: name for name in lines}).items()):
        if line not in lines:
            known = ", ".join(map(repr, lines))
            raise PPFError(f"there is no line {line!r}: give one of {known}.")
        same = sorted(lines[line], key=lambda group: group.ratio)
        places = [fmean(g.values(_SIZE)) if sized else 100 * g.ratio for g in same]
        means = [fmean(group.values(first)) for group in same]
        style: dict[str, Any] = {"color": OTHERS[place % len(OTHERS)], "ms": 4, "capsize": 2.5}
        style["fmt"] = "-o" if place < len(OTHERS) else "--s"
        axes.errorbar(places, means, _spread(same, first), label=name, lw=1.3, **style)
    axes.set_xlabel("MiB of prunable matrices in the file" if sized else "pruning ratio")
    if not sized:
        _baselines(axes, found, first)
        axes.xaxis.set_major_formatter(percents(1))
    low, high = axes.dataLim.intervaly
    if low > 0 and high > _WIDE * low:
        log_scale(axes)
    legend_above(axes, columns=2)


def _lines(found: Sequence[Group]) -> dict[str, list[Group]]:
    """The groups of each line, by the overrides; by their values where these are unique."""
    named: dict[str, list[Group]] = {}
    short: dict[str, str] = {}
    for group in found:
        given = {key: text for key, text in group.key.items() if text}
        name = " ".join(f"{key}={text}" for key, text in given.items()) or "default"
        named.setdefault(name, []).append(group)
        short[name] = ", ".join(_word(*pair) for pair in given.items()) or "default"
    unique = len({*short.values()}) == len(short)
    return {short[name] if unique else name: groups for name, groups in named.items()}


def _word(key: str, text: str) -> str:
    """The option of a config group, or the last part of the key with its value."""
    is_option = "." not in key and text[:1].isalpha() and text.lower() not in ("true", "false")
    return text.rpartition("/")[2] if is_option else f"{key.rpartition('.')[2]}={text}"


def _baselines(axes: Axes, found: Sequence[Group], first: str) -> None:
    """The policies that searches compare with, where all jobs of a ratio have the same ones."""
    for prefix, name in _BASELINES.items():
        values: dict[float, list[float]] = {}
        for group in found:
            values.setdefault(group.ratio, []).extend(group.values(f"{prefix}_{first}"))
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
    names = {id(group): name for name, groups in _lines(found).items() for group in groups}
    ratios = [f", {percent(g.ratio)}" if isinstance(g.ratio, float) else "" for g in best]
    means = [fmean(group.values(first)) for group in best]
    places = range(len(best))
    axes.errorbar(means, places, xerr=_spread(best, first), fmt="o", color=OTHERS[0], ms=5, lw=1.2)
    axes.set_yticks(places, [names[id(g)] + at for g, at in zip(best, ratios, strict=True)])
    axes.invert_yaxis()


def _spread(groups: Sequence[Group], figure: str) -> list[list[float]]:
    """How far each error bar reaches below and above: the interval, or the range of seeds."""
    below, above = [], []
    for group in groups:
        values, mean = group.values(figure), fmean(group.values(figure))
        low, high = (group.mean(f"{figure}_{end}") for end in ("low", "high"))
        below.append(max(mean - (min(values) if low is None else low), 0.0))
        above.append(max((max(values) if high is None else high) - mean, 0.0))
    return [below, above]
