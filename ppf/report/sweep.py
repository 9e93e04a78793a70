"""The results of a multirun: read from the run.json of each job, as rows and as a table."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import OmegaConf

from ppf.errors import PPFError, reason
from ppf.records import check, read
from ppf.records.run import BEGUN_BY, RUN, MultirunRecord, RowsRecord, RunRecord
from ppf.report.scores import decimal, duration
from ppf.report.tables import Cell, Column, Table, error, interval

JobRow = Mapping[str, Any]
REPEATED = "seed"
"""The override over whose values tables and plots average."""
_POINT = re.compile(r"[+-]?(\.\d+|\d+\.)")  # a number for Hydra, but not for JSON
_ENDS = ("low", "high")  # of a figure's interval


@dataclass(frozen=True)
class Sweep:
    """The results of the jobs of a multirun.

    Args:
        commands: that the jobs ran.
        versions: of the program that ran them; "unknown": an early one.
        axes: overrides that differ between the jobs, and ratio and model if a job has several.
        figures: names of the numbers; the first one is compared, and the smallest is the best.
        rows: one for each job, or for each ratio of a job. Beside axes and figures they have the
            folder of the `job`.
    """

    commands: Sequence[str]
    versions: Sequence[str]
    axes: Sequence[str]
    figures: Sequence[str]
    rows: Sequence[JobRow]

    @property
    def jobs(self) -> int:
        """Number of jobs."""
        return len({row["job"] for row in self.rows})

    @property
    def shown(self) -> list[str]:
        """The figures without the ends of intervals, which stand beside their figures."""
        ends = {f"{name}_{end}" for name in self.figures for end in _ENDS}
        return [name for name in self.figures if name not in ends]

    @property
    def groups(self) -> list["Group"]:
        """Rows grouped over seeds, sorted by ratio, then by the mean of the first figure."""
        axes = [axis for axis in self.axes if axis != REPEATED]
        found: dict[tuple[Any, ...], list[JobRow]] = {}
        for row in self.rows:
            found.setdefault(tuple(row.get(axis) for axis in axes), []).append(row)
        groups = [Group(dict(zip(axes, key, strict=True)), rows) for key, rows in found.items()]
        return sorted(groups, key=lambda g: (_rank(g.key.get("ratio")), self._rank(g)))

    @property
    def with_numbers(self) -> list["Group"]:
        """The groups in which all runs have the first figure: it is finite."""
        first = self.figures[0]
        return [group for group in self.groups if group.finite(first)]

    def _rank(self, group: "Group") -> tuple[bool, float, str]:
        """Groups come last if the first figure is not finite in a run."""
        first = self.figures[0]
        return _rank(group.mean(first) if group.finite(first) else None)


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
    def name(self) -> str:
        """The job's overrides except for the ratio, as in "agent=ppo labels.count=256"."""
        texts = zip(self.key, self.texts, strict=True)
        return " ".join(f"{key}={text}" for key, text in texts if key != "ratio" and text)

    @property
    def texts(self) -> list[str]:
        """The values of the overrides as text."""
        return [_text(key, value) for key, value in self.key.items()]

    def values(self, figure: str) -> list[float]:
        """The figure's numbers that are known."""
        found = [row.get(figure) for row in self.rows]
        return [value for value in found if isinstance(value, int | float)]

    def finite(self, figure: str) -> bool:
        """Whether all runs have a number there."""
        return len(self.values(figure)) == len(self.rows)

    def runs(self, figure: str) -> str:
        """The number of runs; as in "1 of 2" if not all have the figure."""
        known, count = len(self.values(figure)), len(self.rows)
        return f"{known} of {count}" if 0 < known < count else str(count)

    def mean(self, figure: str) -> float | None:
        """The mean of the numbers; None: none is known."""
        values = self.values(figure)
        return fmean(values) if values else None

    def interval(self, figure: str) -> tuple[float, float] | None:
        """The means of the lower and the upper ends of the figure's intervals, if known."""
        low, high = (self.mean(f"{figure}_{end}") for end in _ENDS)
        return None if low is None or high is None else (low, high)

    def half(self, figure: str) -> float | None:
        """Half the range of the numbers; None: they are equal, or none is known."""
        values = self.values(figure)
        return (max(values) - min(values)) / 2 or None if values else None

    def words(self, figure: str) -> str | None:
        """The values that are no numbers; None: there are none."""
        found = [str(row[figure]) for row in self.rows if row.get(figure) is not None]
        return ", ".join(dict.fromkeys(found)) or None

    def text(self, figure: str) -> str:
        """The figure as readers see it."""
        columns, cells = zip(*_cells([self], figure), strict=True)
        return str(Table(columns, [[cell for (cell,) in cells]]).shown.rows[0][0])


def read_sweep(folder: Path) -> Sweep:
    """Reads all finished jobs in a folder and its sub-folders; see `finished_jobs`.

    Raises:
        PPFError: no job has finished, or a run.json is damaged.
    """
    files = finished_jobs(folder)
    if not files:
        raise PPFError(f"{folder} has no finished job (no run.json): give a multirun's folder.")
    newest = _newest({file: read_job(file) for file in files})
    files, jobs = [*newest], [*newest.values()]
    given = [dict(word.partition("=")[::2] for word in job["overrides"]) for job in jobs]
    axes = [
        key
        for key in dict.fromkeys(key for overrides in given for key in overrides)
        if len({overrides.get(key) for overrides in given}) > 1
    ]
    rows = []
    for file, job, overrides in zip(files, jobs, given, strict=True):
        own = {key: _value(overrides[key]) for key in axes if key in overrides}
        own |= {"job": file.parent.relative_to(folder).as_posix(), "seconds": job["seconds"]}
        missing = dict.fromkeys(axes, "")
        rows += [missing | found | own for found in job["figures"] or [{"metric": job["metric"]}]]
    for axis in ("model", "ratio"):
        if axis not in axes and len({row.get(axis) for row in rows}) > 1:
            axes = [axis, *axes]
    figures = _figures(rows, axes)
    first = "ratio" if "ratio" in axes else figures[0]
    rows.sort(key=lambda row: (_rank(row.get(first)), _rank(row.get(figures[0]))))
    commands = sorted({job["command"] for job in jobs})
    versions = sorted({job.get("version") or "unknown" for job in jobs})
    return Sweep(commands, versions, axes, figures, rows)


def _newest(jobs: Mapping[Path, dict[str, Any]]) -> dict[Path, dict[str, Any]]:
    """Leaves out jobs that were run again: another folder has a newer one of the same overrides.

    The number in a folder's name can change if a multirun gets more jobs.
    """
    found: dict[tuple[str, ...], Path] = {}
    for file in sorted(jobs, key=lambda file: file.stat().st_mtime):
        job = jobs[file]
        told = sorted(job["overrides"]) or [job["config"]]  # Python code has no overrides
        found[job["command"], *told] = file
    return {file: jobs[file] for file in sorted(found.values())}


def read_job(file: Path) -> dict[str, Any]:
    """Reads a run.json.

    Raises:
        PPFError: it is damaged.
    """
    return read(file, RunRecord, "delete it and run its job again")


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
    return Sweep([], found["versions"], axes, figures, rows)


def _figures(rows: Sequence[JobRow], axes: Sequence[str]) -> list[str]:
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if name not in ("ratio", "job", "version", *axes)]


def multirun(folder: Path) -> tuple[str, list[str]] | None:
    """Command and overrides of the multirun; None: the folder lies above several multiruns."""
    file = folder / "multirun.yaml"
    if not file.is_file():
        return None
    remedy = "delete it, and the page is made without the multirun's command"
    try:
        # Interpolations are not resolved: a folder of others could read this machine's environment.
        content: Any = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
    except Exception as error:  # of the YAML parser, of OmegaConf, or of a file that is no text
        raise PPFError(f"{file} cannot be read ({reason(error)}): {remedy}.") from error
    hydra = check(content, MultirunRecord, file, remedy)["hydra"]
    own = [x for x in hydra["overrides"].get("hydra", []) if not x.startswith("hydra.mode=")]
    return hydra["job"]["name"], [*hydra["overrides"]["task"], *own]


def finished_jobs(folder: Path) -> list[Path]:
    """The run.json of each finished job in a folder and its sub-folders.

    A job whose folder is only a number counts if the last multirun in that place began it:
    otherwise, its overrides are those of another multirun.
    """
    files = sorted(folder.rglob(RUN))
    last = {place: _last_multirun(place) for place in {file.parent.parent for file in files}}
    return [
        file
        for file in files
        if not file.parent.name.isdigit()
        or last[file.parent.parent] in (None, _begun_by(file.parent))
    ]


def _last_multirun(place: Path) -> str | None:
    files = place.glob(f"*/{BEGUN_BY}")
    last = max(files, key=lambda file: file.stat().st_mtime_ns, default=None)
    return _begun_by(last.parent.parent) if last else None


def jobs_of(multirun: str, folder: Path) -> list[Path]:
    """Folders of the jobs that a multirun began, whether they have finished or not."""
    jobs = (file.parent.parent for file in sorted(folder.rglob(BEGUN_BY)))
    return [job for job in jobs if _begun_by(job) == multirun]


def _begun_by(job: Path) -> str | None:
    file = job / BEGUN_BY
    return file.read_text(errors="replace") if file.is_file() else None


def sweep_table(sweep: Sweep) -> Table:
    """One row for each group."""
    axes = [axis for axis in sweep.axes if axis != REPEATED]
    groups, filled = sweep.groups, list[tuple[Column, list[Cell]]]()
    for place, axis in enumerate(axes):
        filled.append((Column(axis), [group.texts[place] for group in groups]))
    if REPEATED in sweep.axes:
        filled.append((Column("runs", str), [group.runs(sweep.figures[0]) for group in groups]))
    for figure in sweep.shown:
        filled += _cells(groups, figure)
    columns, cells = zip(*filled, strict=True)
    rows = list(zip(*cells, strict=True))
    return Table(columns, rows).without_empty_columns()


def _cells(groups: Sequence[Group], figure: str) -> list[tuple[Column, list[Cell]]]:
    """A figure's columns with a cell for each group: mean, half the range, and interval."""
    name, show = words(figure), _show(figure)
    if not any(group.values(figure) for group in groups):
        return [(Column(name), [group.words(figure) for group in groups])]
    ends = [group.interval(figure) or (None, None) for group in groups]
    low, high = interval(name, show)
    return [
        (Column(name, show), [group.mean(figure) for group in groups]),
        (error(f"± half the range, {name}", show), [group.half(figure) for group in groups]),
        (low, [end for end, _ in ends]),
        (high, [end for _, end in ends]),
    ]


def words(figure: str) -> str:
    """The readable name of a figure, as in "test perplexity"."""
    return figure.replace("_ppl", "_perplexity").replace("_", " ")


def _show(figure: str) -> Any:
    if figure == "seconds":
        return duration
    if figure.startswith("nll_"):
        return "{:.4f}".format
    return decimal if figure.endswith("_ppl") else _number


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _value(text: str) -> Any:
    """A number where the text is one."""
    try:
        value = json.loads(text)
    except ValueError:
        return float(text) if _POINT.fullmatch(text) else text
    return value if type(value) in (int, float) else text


def _text(axis: str, value: Any) -> str:
    """The value of an axis; that of an override can be repeated."""
    if value is None:  # the ratio of a dense model
        return ""
    return f"{value:.6g}" if axis == "ratio" and isinstance(value, float) else str(value)


def _rank(value: Any) -> tuple[bool, float, str]:
    """Numbers first, by size; then words; then what is missing."""
    if isinstance(value, int | float):
        return False, float(value), ""
    return True, float(value is None), str(value)
