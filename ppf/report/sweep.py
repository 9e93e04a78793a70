"""The results of a multirun: read from the run.json of each job, as rows and as a table."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ppf.errors import PPFError
from ppf.records import read
from ppf.records.run import BEGUN_BY, RUN, RowsRecord, RunRecord
from ppf.report.scores import decimal, duration
from ppf.report.tables import Cell, Column, Table, error, interval

JobRow = Mapping[str, Any]
REPEATED = "seed"
"""The override over whose values tables and plots average."""
_POINT = re.compile(r"[+-]?(\.\d+|\d+\.)")  # a number for Hydra, but not for JSON
_ENDS = ("low", "high")  # of a figure's interval


@dataclass(frozen=True)
class Group:
    """Rows whose overrides are equal except for the seed.

    Args:
        key: override → value.
        rows: the rows.
    """

    key: Mapping[str, Any]
    rows: Sequence[JobRow]

    @property
    def ratio(self) -> Any:
        """The pruning ratio; None: it has none, or all groups have the same."""
        return self.key.get("ratio")

    def values(self, figure: str) -> list[float]:
        """The figure's numbers that are known."""
        found = [row.get(figure) for row in self.rows]
        return [value for value in found if isinstance(value, int | float)]

    def mean(self, figure: str) -> float | None:
        """The mean of the numbers; None: none is known."""
        values = self.values(figure)
        return fmean(values) if values else None

    def ends(self, figure: str) -> list[float | None]:
        """The means of the lower and of the upper ends of the figure's intervals."""
        return [self.mean(f"{figure}_{end}") for end in _ENDS]

    def finite(self, figure: str) -> bool:
        """Whether all runs have a number there."""
        return len(self.values(figure)) == len(self.rows)


@dataclass(frozen=True)
class Sweep:
    """The results of the jobs of a multirun.

    Args:
        versions: of the program that ran them; "unknown": an early one.
        axes: overrides that differ between the jobs, and ratio and model if a job has several.
        figures: names of the numbers; the first one is compared, and the smallest is the best.
        rows: one for each job, or for each ratio of a job. Beside axes and figures they have the
            folder of the `job`.
    """

    versions: Sequence[str]
    axes: Sequence[str]
    figures: Sequence[str]
    rows: Sequence[JobRow]

    @property
    def groups(self) -> list[Group]:
        """Rows grouped over seeds, sorted by ratio, then by the mean of the first figure."""
        axes, first = [axis for axis in self.axes if axis != REPEATED], self.figures[0]
        found: dict[tuple[Any, ...], list[JobRow]] = {}
        for row in self.rows:
            found.setdefault(tuple(row.get(axis) for axis in axes), []).append(row)
        groups = [Group(dict(zip(axes, key, strict=True)), rows) for key, rows in found.items()]

        def rank(group: Group) -> tuple[Any, Any]:
            # A mean that leaves out a run without a finite number would be too low.
            mean = group.mean(first) if group.finite(first) else None
            return _rank(group.ratio), _rank(mean)

        return sorted(groups, key=rank)

    @property
    def table(self) -> Table:
        """One row for each group."""
        groups, filled = self.groups, list[tuple[Column, list[Cell]]]()
        for axis in groups[0].key:
            filled.append((Column(axis), [value_text(axis, group.key[axis]) for group in groups]))
        if REPEATED in self.axes:
            first = self.figures[0]
            counts = [(len(group.values(first)), len(group.rows)) for group in groups]
            texts = [f"{n} of {all}" if 0 < n < all else str(all) for n, all in counts]
            filled.append((Column("runs", str), list(texts)))
        ends = {f"{name}_{end}" for name in self.figures for end in _ENDS}
        for figure in self.figures:
            if figure not in ends:
                filled += _cells(groups, figure)
        columns, cells = zip(*filled, strict=True)
        return Table(columns, [*zip(*cells, strict=True)]).without_empty_columns()


def read_sweep(folder: Path) -> Sweep:
    """Reads all finished jobs in a folder and its sub-folders; see `finished_jobs`.

    Raises:
        PPFError: no job has finished, or a run.json is damaged.
    """
    files = sorted(finished_jobs(folder), key=lambda file: file.stat().st_mtime)
    if not files:
        raise PPFError(f"{folder} has no finished job (no run.json): give a multirun's folder.")
    newest = {}
    for file in files:
        job = read(file, RunRecord, "delete it and run its job again")
        # One of the same overrides that ran again in another folder counts once; Python code has
        # no overrides.
        newest[job["command"], *(sorted(job["overrides"]) or [job["config"]])] = file, job
    jobs = dict(sorted(newest.values(), key=lambda pair: pair[0]))
    given = {
        file: dict(word.partition("=")[::2] for word in job["overrides"])
        for file, job in jobs.items()
    }
    keys = dict.fromkeys(key for overrides in given.values() for key in overrides)
    axes = [key for key in keys if len({each.get(key) for each in given.values()}) > 1]
    rows = []
    for file, job in jobs.items():
        own = {key: _value(given[file][key]) for key in axes if key in given[file]}
        own |= {"job": file.parent.relative_to(folder).as_posix(), "seconds": job["seconds"]}
        missing = dict.fromkeys(axes, "")
        rows += [missing | found | own for found in job["figures"] or [{"metric": job["metric"]}]]
    for axis in ("model", "ratio"):
        if axis not in axes and len({row.get(axis) for row in rows}) > 1:
            axes = [axis, *axes]
    figures = _figures(rows, axes)
    first = "ratio" if "ratio" in axes else figures[0]
    rows.sort(key=lambda row: (_rank(row.get(first)), _rank(row.get(figures[0]))))
    versions = sorted({job.get("version") or "unknown" for job in jobs.values()})
    return Sweep(versions, axes, figures, rows)


def read_rows(file: Path) -> Sweep:
    """Reads a results.json that a multirun's report has written.

    Raises:
        PPFError: it is damaged.
    """
    found = read(file, RowsRecord, "make it again with `python -m ppf.report sweep FOLDER`")
    axes = found["axes"]
    rows = [dict.fromkeys(axes, "") | row for row in found["rows"]]
    if not (figures := found.get("figures") or _figures(rows, axes)):
        raise PPFError(f"{file} has no numbers to plot: give another file.")
    return Sweep(found["versions"], axes, figures, rows)


def finished_jobs(folder: Path) -> list[Path]:
    """The run.json of each finished job in a folder and its sub-folders.

    A job whose folder is only a number counts if the last multirun in that place began it:
    otherwise, its overrides are those of another multirun.
    """

    def counts(job: Path) -> bool:
        marks = job.parent.glob(f"*/{BEGUN_BY}")
        last = max(marks, key=lambda mark: mark.stat().st_mtime_ns, default=None)
        return not job.name.isdigit() or not last or begun_by(job) == begun_by(last.parent.parent)

    return [file for file in sorted(folder.rglob(RUN)) if counts(file.parent)]


def begun_by(job: Path) -> str | None:
    """The identifier of the multirun that began a job."""
    file = job / BEGUN_BY
    return file.read_text(errors="replace") if file.is_file() else None


def words(figure: str) -> str:
    """The readable name of a figure, as in "test perplexity"."""
    return figure.replace("_ppl", "_perplexity").replace("_", " ")


def value_text(axis: str, value: Any) -> str:
    """The value of an axis; that of an override can be repeated."""
    if value is None:  # the ratio of a dense model
        return ""
    return f"{value:.6g}" if axis == "ratio" and isinstance(value, float) else str(value)


def _cells(groups: Sequence[Group], figure: str) -> list[tuple[Column, list[Cell]]]:
    """A figure's columns with a cell for each group: mean, half the range, and interval."""
    name, values = words(figure), [group.values(figure) for group in groups]
    if not any(values):
        texts = [dict.fromkeys(str(row.get(figure) or "") for row in g.rows) for g in groups]
        return [(Column(name), [", ".join(filter(None, text)) or None for text in texts])]
    show = decimal if figure.endswith("_ppl") else _SHOWN.get(figure.partition("_")[0], _number)
    low, high = interval(name, show)
    halves = [(max(each) - min(each)) / 2 or None if each else None for each in values]
    ends = [group.ends(figure) for group in groups]
    return [
        (Column(name, show), [group.mean(figure) for group in groups]),
        (error(f"± half the range, {name}", show), list(halves)),
        (low, [end for end, _ in ends]),
        (high, [end for _, end in ends]),
    ]


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


_SHOWN = {"seconds": duration, "nll": "{:.4f}".format}


def _figures(rows: Sequence[JobRow], axes: Sequence[str]) -> list[str]:
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if name not in ("ratio", "job", "version", *axes)]


def _value(text: str) -> Any:
    """A number where the text is one."""
    try:
        value = json.loads(text)
    except ValueError:
        return float(text) if _POINT.fullmatch(text) else text
    return value if type(value) in (int, float) else text


def _rank(value: Any) -> tuple[bool, float, str]:
    """Numbers first, by size; then words; then what is missing."""
    if isinstance(value, int | float):
        return False, float(value), ""
    return True, float(value is None), str(value)
