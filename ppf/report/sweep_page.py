"""The files of a multirun: rows, the table, a plot, and a page with both."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ppf.artefacts import draft, write_json
from ppf.errors import PPFError
from ppf.progress import warning
from ppf.records.run import RUN
from ppf.report import style
from ppf.report.page import Page, ReportSection, write_page
from ppf.report.sweep import Group, Sweep, read_rows, read_sweep, words
from ppf.report.tables import print_table

_SIZE = "matrices_mib"  # figure of searches whose budget counts bytes
_BASELINES = {"uniform": "uniform pruning", "best_rule": "the best allocation rule"}
_EQUAL = 1.01  # ratio of perplexities of one policy on several machines
_WIDE = 3  # ratio of highest to lowest value above which the axis is logarithmic


def write_sweep(folder: Path) -> dict[str, Path]:
    """Writes results.json, results.csv, results.png and report.html, and prints the table.

    There is no results.png if no job has a ratio.

    Returns:
        The files, by their purpose.

    Raises:
        PPFError: as for `read_sweep`, or the folder is that of one run, which has its own report.
    """
    if (folder / RUN).is_file():
        raise PPFError(f"{folder} has the results of one run: give a folder of several runs.")
    sweep = read_sweep(folder)
    files = {"rows": "results.json", "table": "results.csv", "report": "report.html"}
    paths = {purpose: folder / name for purpose, name in files.items()}
    jobs = len({row["job"] for row in sweep.rows})
    note = "Means over seeds ± half their range, best first."
    figure = sweep_figure(sweep)
    drawn = [ReportSection("Against the pruning ratio", note, figure=figure)] if figure else []
    headline = f"{jobs} finished jobs; at each ratio the best one comes first."
    sections = [*drawn, ReportSection("All jobs", note, table=sweep.table)]
    command = shlex.join(["python", "-m", "ppf.report", "sweep", str(folder)])
    page = Page(f"Multirun {folder.name}", headline, sections, {"command": command})
    write_json(paths["rows"], vars(sweep))
    with draft(paths["table"]) as made:
        made.write_text(sweep.table.csv, encoding="utf-8")
    if figure:
        paths["plot"] = folder / "results.png"
        style.save_png(figure, paths["plot"])
    write_page(paths["report"], page)
    print_table(sweep.table)
    if len(sweep.versions) > 1:
        warning(f"these jobs are from several versions: {'; '.join(sweep.versions)}.")
    return paths


def plot_rows(file: Path, names: Mapping[str, str]) -> Path:
    """Draws the rows of a results.json, as results.png beside it.

    Args:
        names: names of the lines to draw, and what to call them; empty: all lines.

    Raises:
        PPFError: the file is damaged, or there is no line of a name.
    """
    path, figure = file.with_suffix(".png"), sweep_figure(read_rows(file), names)
    if figure is None:
        raise PPFError(f"{file} has no numbers at a ratio: give another file.")
    style.save_png(figure, path)
    return path


def sweep_figure(sweep: Sweep, names: Mapping[str, str] | None = None) -> Figure | None:
    """The first figure of the jobs against the pruning ratio; None: no job has a ratio.

    Each combination of the other overrides has a line. Where the sizes of all models are known, the
    horizontal axis has sizes.

    Args:
        names: names of the lines to draw, and what to call them; None: all lines.

    Raises:
        PPFError: there is no line of a name.
    """
    first = sweep.figures[0]
    found = [g for g in sweep.groups if isinstance(g.ratio, float) and g.mean(first) is not None]
    if not found:
        return None
    sized, lines = all(group.values(_SIZE) for group in found), _lines(found)
    with style.styled():
        figure = Figure(figsize=(6.6, 4.4), layout="constrained")
        axes = figure.add_subplot()
        for place, (line, name) in enumerate((names or {name: name for name in lines}).items()):
            if line not in lines:
                known = ", ".join(map(repr, lines))
                raise PPFError(f"there is no line {line!r}: give one of {known}.")
            same = sorted(lines[line], key=lambda group: group.ratio)
            places = [fmean(g.values(_SIZE)) if sized else 100 * g.ratio for g in same]
            values = [group.values(first) for group in same]
            means = [fmean(each) for each in values]
            below = [mean - min(each) for mean, each in zip(means, values, strict=True)]
            above = [max(each) - mean for mean, each in zip(means, values, strict=True)]
            look: style.Look = {"lw": 1.3, "ms": 4, "capsize": 2.5}
            look["fmt"] = "-o" if place < len(style.OTHERS) else "--s"
            look["color"] = style.OTHERS[place % len(style.OTHERS)]
            axes.errorbar(places, means, [below, above], label=name, **look)
        several = any(len(group.rows) > 1 for group in found)
        axes.set_ylabel(words(first) + "\n(mean and range over seeds)" * several)
        axes.set_xlabel("MiB of prunable matrices in the file" if sized else "pruning ratio")
        if not sized:
            _baselines(axes, found, first)
            axes.xaxis.set_major_formatter(style.percents(1))
        low, high = axes.dataLim.intervaly
        if low > 0 and high > _WIDE * low:
            style.log_scale(axes)
        style.legend_above(axes, columns=2)
    return figure


def _lines(found: Sequence[Group]) -> dict[str, list[Group]]:
    """The groups of each line, by the overrides; by their values where these are unique."""
    named: dict[str, list[Group]] = {}
    short: dict[str, list[Group]] = {}
    for group in found:
        given = {key: text for key, text in group.key.items() if text}
        name = " ".join(f"{key}={text}" for key, text in given.items())
        named.setdefault(name or "default", []).append(group)
        name = ", ".join(_word(*pair) for pair in given.items())
        short.setdefault(name or "default", []).append(group)
    return short if len(short) == len(named) else named


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
            colour = style.NAMED.get(prefix, style.GREY)
            axes.plot(*zip(*known, strict=True), "--", color=colour, lw=1.3, label=name, zorder=1)
