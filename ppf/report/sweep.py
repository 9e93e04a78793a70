"""The results of a multirun: read from the run.json of each job, as rows and as a table."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ppf.errors import PPFError
from ppf.records import read
from ppf.records.run import BEGUN_BY, RUN, RowsRecord, RunRecord
from ppf.report.scores import decimal, duration
from ppf.report.tables import Cell, Table

JobRow = Mapping[str, Any]
_REPEATED = "seed"  # the override over whose values tables and plots average


@dataclass(frozen=True)
class Group:
    """Rows whose overrides are equal except for the seed.

    Args:
        key: override → value as text; that of an override can be repeated.
        ratio: None: it has none, or all groups have the same.
        rows: the rows.
    """

    key: Mapping[str, str]
    ratio: Any
    rows: Sequence[JobRow]

    def values(self, figure: str) -> list[float]:
        """The figure's numbers that are known."""
        found = [row.get(figure) for row in self.rows]
        return [value for value in found if isinstance(value, int | float)]

    def mean(self, figure: str) -> float | None:
        """None: a row has no finite number, and the mean of the others would be too low."""
        values = self.values(figure)
        return fmean(values) if len(values) == len(self.rows) else None

    def cells(self, figures: Sequence[str]) -> dict[str, Cell]:
        """Mean and half the range of each figure; texts that are no numbers."""
        found: dict[str, Cell] = {}
        for figure in figures:
            name, values = words(figure), self.values(figure)
            texts = dict.fromkeys(str(row[figure]) for row in self.rows if row.get(figure))
            found[name] = fmean(values) if values else ", ".join(texts) or None
            if not figure.endswith(("_low", "_high")):
                found[f"± {name}"] = (max(values) - min(values)) / 2 or None if values else None
        return found


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
        axes = [axis for axis in self.axes if axis != _REPEATED]
        found: dict[tuple[Any, ...], list[JobRow]] = {}
        for row in self.rows:
            found.setdefault(tuple(row.get(axis) for axis in axes), []).append(row)
        groups = []
        for key, rows in found.items():
            values = dict(zip(axes, key, strict=True))
            ratio = values.pop("ratio", None)
            texts = {axis: "" if value is None else str(value) for axis, value in values.items()}
            groups.append(Group(texts, ratio, rows))
        first = self.figures[0]
        return sorted(groups, key=lambda g: (_rank(g.ratio), _rank(g.mean(first))))

    @property
    def table(self) -> Table:
        """One row for each group."""
        first, repeated = self.figures[0], _REPEATED in self.axes
        rows: list[dict[str, Cell]] = []
        for group in self.groups:
            known, every = len(group.values(first)), len(group.rows)
            key = {"ratio": None if group.ratio is None else f"{group.ratio:.6g}", **group.key}
            count = f"{known} of {every}" if 0 < known < every else str(every)
            runs = count if repeated else None
            rows.append({**key, "runs": runs, **group.cells(self.figures)})
        return Table(rows, {words(figure): _shown(figure) for figure in self.figures})


def read_sweep(folder: Path) -> Sweep:
    """Reads all finished jobs in a folder and its sub-folders; see `finished_jobs`.

    Raises:
        PPFError: no job has finished, or a run.json is damaged.
    """
    newest = {}
    for file in sorted(finished_jobs(folder), key=lambda file: file.stat().st_mtime):
        job = read(file, RunRecord, "delete it and run its job again")
        # Jobs of the same overrides count once; Python code has no overrides.
        newest[job["command"], *(sorted(job["overrides"]) or [job["config"]])] = file, job
    if not newest:
        raise PPFError(f"{folder} has no finished job (no run.json): give a multirun's folder.")
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
    return Sweep(versions, axes, figures, rows)


def read_rows(file: Path) -> Sweep:
    """Reads a results.json that a multirun's report has written.

    Raises:
        PPFError: it is damaged.
    """
    found = read(file, RowsRecord, "make it again with `python -m ppf.report sweep FOLDER`")
    return Sweep(found["versions"], found["axes"], found["figures"], found["rows"])


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


def _rank(value: Any) -> tuple[bool, float, str]:
    """Numbers first, by size; then words; then what is missing."""
    if isinstance(value, int | float):
        return False, float(value), ""
    return True, float(value is None), str(value)
