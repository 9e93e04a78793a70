"""The report of a multirun: rows from the run.json of each job, a table, a plot, and a page."""

import math
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field

from ppf.artefacts import draft, write_json
from ppf.errors import PPFError
from ppf.progress import say, warning
from ppf.records import read
from ppf.records.run import RUN, Cell, RunRecord
from ppf.records.values import Record, Word
from ppf.report import style
from ppf.report.numbers import decimal, duration
from ppf.report.page import Page, ReportSection, write_page
from ppf.report.tables import Table, print_table

JobRow = Mapping[str, Any]
_REPEATED = "seed"  # the override over whose values tables and plots average
_SIZE = "matrices_mib"  # figure of searches whose budget counts bytes
_BASELINES = {
    "uniform": "uniform pruning",
    "best_rule": "the best allocation rule",
    "best_published_rule": "the best published rule",
}
_EQUAL = 1.01  # ratio of perplexities of one policy on several machines
_WIDE = 3  # ratio of highest to lowest value above which the axis is logarithmic


class Group(NamedTuple):
    """Rows whose overrides are equal except for the seed.

    Args:
        ratio: infinite: it has none, or all groups have the same.
        key: override → value as text; that of an override can be repeated.
        rows: the rows.
    """

    ratio: float
    key: Mapping[str, str]
    rows: Sequence[JobRow]

    def values(self, figure: str) -> list[float]:
        """The figure's numbers that are known."""
        found = [row.get(figure) for row in self.rows]
        return [value for value in found if isinstance(value, int | float)]


class Sweep(Record):
    """The results of the jobs of a multirun: the contents of its results.json.

    Args:
        versions: of the program that ran them; "unknown": an early one.
        axes: overrides that differ between the jobs, and ratio and model if a job has several.
        figures: names of the numbers; the first one is compared, and the smallest is the best.
        rows: one for each job, or for each ratio of a job. Beside axes and figures they have the
            folder of the `job`.
    """

    versions: list[Word]
    axes: list[Word]
    figures: Annotated[list[Word], Field(min_length=1)]
    rows: Annotated[list[dict[Word, Cell]], Field(min_length=1)]

    @property
    def groups(self) -> list[Group]:
        """Rows grouped over seeds, sorted by ratio, then by the mean of the first figure."""
        found: dict[tuple[Any, ...], list[JobRow]] = {}
        axes = [axis for axis in self.axes if axis not in ("ratio", _REPEATED)]
        for row in self.rows:
            ratio = row.get("ratio") if "ratio" in self.axes else None
            texts = ("" if row.get(axis) is None else str(row[axis]) for axis in axes)
            key = ratio if isinstance(ratio, int | float) else math.inf, *texts
            found.setdefault(key, []).append(row)
        groups = [
            Group(r, dict(zip(axes, k, strict=True)), rows) for (r, *k), rows in found.items()
        ]

        def rank(group: Group) -> tuple[float, bool, float]:
            values = group.values(self.figures[0])
            diverged = len(values) < len(group.rows)  # the mean of the others would be too low
            return group.ratio, diverged, fmean(values) if values else math.inf

        return sorted(groups, key=rank)

    @property
    def table(self) -> Table:
        """One row for each group: mean and half the range of each figure, or its texts."""
        rows = []
        for group in self.groups:
            known, every = len(group.values(self.figures[0])), len(group.rows)
            count = f"{known} of {every}" if 0 < known < every else str(every)
            ratio = f"{group.ratio:.6g}" if math.isfinite(group.ratio) else None
            row: dict[str, Cell] = {"ratio": ratio, **group.key}
            row["runs"] = count if _REPEATED in self.axes else None
            for figure in self.figures:
                name, values = words(figure), group.values(figure)
                texts = dict.fromkeys(str(row[figure]) for row in group.rows if row.get(figure))
                row[name] = fmean(values) if values else ", ".join(texts) or None
                if not figure.endswith(("_low", "_high")):
                    row[f"± {name}"] = (max(values) - min(values)) / 2 or None if values else None
            rows.append(row)
        return Table(rows, {words(figure): _shown(figure) for figure in self.figures})


def write_sweep(folder: Path) -> None:
    """Writes results.json, results.csv, results.png and report.html; prints the table and paths.

    There is no results.png if no job has a ratio.

    Raises:
        PPFError: as for `read_sweep`.
    """
    sweep = read_sweep(folder)
    table, figure = sweep.table, sweep_figure(sweep)
    paths = [folder / name for name in ("results.json", "results.csv", "report.html")]
    note = "Means over seeds ± half their range, best first."
    sections = [ReportSection("All jobs", note, table=table)]
    if figure:
        sections.insert(0, ReportSection("Against the pruning ratio", note, figure=figure))
        paths.append(folder / "results.png")
        style.save_png(figure, paths[-1])
    jobs = {row["job"] for row in sweep.rows}
    headline = f"{len(jobs)} finished jobs; at each ratio the best one comes first."
    about = {"command": shlex.join(["python", "-m", "ppf.report", "sweep", str(folder)])}
    write_page(paths[2], Page(f"Multirun {folder.name}", headline, sections, about))
    write_json(paths[0], sweep.model_dump())
    with draft(paths[1]) as made:
        made.write_text(table.csv, encoding="utf-8")
    print_table(table)
    if len(sweep.versions) > 1:
        warning(f"these jobs are from several versions: {'; '.join(sweep.versions)}.")
    for path in paths:
        say(str(path))


def read_sweep(folder: Path) -> Sweep:
    """Reads all finished jobs in a folder and its sub-folders.

    Raises:
        PPFError: no job has finished, a run.json is damaged, or the folder is that of one run,
            which has its own report.
    """
    newest = {}
    for file in sorted(folder.rglob(RUN), key=lambda file: file.stat().st_mtime):
        job = read(file, RunRecord, "delete it and run its job again")
        # Jobs of the same overrides count once; Python code has no overrides.
        newest[job["command"], *(sorted(job["overrides"]) or [job["config"]])] = file, job
    if not newest or (folder / RUN).is_file():
        raise PPFError(f"{folder} has no sub-folders of finished jobs: give a multirun's folder.")
    jobs = sorted(newest.values(), key=lambda pair: pair[0])
    given = [dict(word.partition("=")[::2] for word in job["overrides"]) for _, job in jobs]
    keys = dict.fromkeys(key for overrides in given for key in overrides)
    axes = [key for key in keys if len({overrides.get(key) for overrides in given}) > 1]
    rows = []
    for (file, job), overrides in zip(jobs, given, strict=True):
        own = {key: _value(overrides[key]) for key in axes if key in overrides}
        own |= {"job": file.parent.relative_to(folder).as_posix(), "seconds": job["seconds"]}
        missing = dict.fromkeys(axes, "")
        rows += [missing | found | own for found in job["figures"] or [{"metric": job["metric"]}]]
    for axis in ("model", "ratio"):
        if axis not in axes and len({row.get(axis) for row in rows}) > 1:
            axes = [axis, *axes]
    names = dict.fromkeys(name for row in rows for name in row)
    figures = [name for name in names if name not in ("ratio", "job", *axes)]
    versions = sorted({job.get("version") or "unknown" for _, job in jobs})
    return Sweep(versions=versions, axes=axes, figures=figures, rows=rows)


def plot_rows(file: Path, names: Mapping[str, str]) -> Path:
    """Draws the rows of a results.json, as results.png beside it.

    Args:
        names: names of the lines to draw, and what to call them; empty: all lines.

    Raises:
        PPFError: the file is damaged, or there is no line of a name.
    """
    found = read(file, Sweep, "make it again with `python -m ppf.report sweep FOLDER`")
    path, figure = file.with_suffix(".png"), sweep_figure(Sweep(**found), names)
    if figure is None:
        raise PPFError(f"{file} has no numbers at a ratio: give another file.")
    style.save_png(figure, path)
    return path


def sweep_figure(sweep: Sweep, names: Mapping[str, str] | None = None) -> Figure | None:
    """The first figure of the jobs against the pruning ratio; None: no job has a ratio.

    Each combination of the other overrides has a line, which is called as they are typed. Where the
    sizes of all models are known, the horizontal axis has sizes.

    Args:
        names: names of the lines to draw, and what to call them; None: all lines.

    Raises:
        PPFError: there is no line of a name.
    """
    first, lines = sweep.figures[0], dict[str, list[Group]]()
    groups = [group for group in sweep.groups if math.isfinite(group.ratio)]
    groups = [group for group in groups if len(group.values(first)) == len(group.rows)]
    for group in groups:
        given = [f"{key}={text}" for key, text in group.key.items() if text]
        lines.setdefault(" ".join(given) or "default", []).append(group)
    if not lines:
        return None
    names = names or {name: name for name in lines}
    if unknown := names.keys() - lines:
        raise PPFError(f"there is no line {min(unknown)!r}: give one of {', '.join(lines)}.")
    sized = all(group.values(_SIZE) for group in groups)
    with style.styled():
        figure = Figure(figsize=(6.6, 4.4), layout="constrained")
        axes = figure.add_subplot()
        for place, (line, name) in enumerate(names.items()):
            places = [fmean(g.values(_SIZE)) if sized else 100 * g.ratio for g in lines[line]]
            values = [group.values(first) for group in lines[line]]
            means = [fmean(each) for each in values]
            below = [mean - min(each) for mean, each in zip(means, values, strict=True)]
            above = [max(each) - mean for mean, each in zip(means, values, strict=True)]
            look: style.Look = {"lw": 1.3, "ms": 4, "capsize": 2.5}
            look["fmt"] = "-o" if place < len(style.OTHERS) else "--s"
            look["color"] = style.OTHERS[place % len(style.OTHERS)]
            axes.errorbar(places, means, [below, above], label=name, **look)
        several = any(len(group.rows) > 1 for group in groups)
        axes.set_ylabel(words(first) + "\n(mean and range over seeds)" * several)
        axes.set_xlabel("MiB of prunable matrices in the file" if sized else "pruning ratio")
        if not sized:
            _baselines(axes, groups, first)
            axes.xaxis.set_major_formatter(style.PERCENTS)
        low, high = axes.dataLim.intervaly
        if low > 0 and high > _WIDE * low:
            style.log_scale(axes)
        style.legend_above(axes, columns=2)
    return figure


def _baselines(axes: Axes, groups: Sequence[Group], first: str) -> None:
    """The policies that searches compare with, where all jobs of a ratio have the same ones."""
    for prefix, name in _BASELINES.items():
        values: dict[float, list[float]] = {}
        for group in groups:
            if found := group.values(f"{prefix}_{first}"):
                values.setdefault(100 * group.ratio, []).extend(found)
        # Otherwise the jobs prune several models.
        known = {r: fmean(each) for r, each in values.items() if max(each) <= _EQUAL * min(each)}
        if known:
            look: style.Look = {"color": style.NAMED.get(prefix, style.GREY), "lw": 1.3}
            line = ":" if "published" in prefix else "--"
            axes.plot([*known], [*known.values()], line, label=name, zorder=1, **look)


def words(figure: str) -> str:
    """The readable name of a figure, as in "test perplexity"."""
    return figure.replace("_ppl", "_perplexity").replace("_", " ")


def _shown(figure: str) -> Callable[[Any], str]:
    """The function that makes text of a figure's numbers."""
    known = {"seconds": duration, "nll": "{:.4f}".format}
    other = decimal if figure.endswith("_ppl") else "{:,.4g}".format
    return known.get(figure.partition("_")[0], other)


def _value(text: str) -> Any:
    """A number where the text is one."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text
