"""The table of a multirun: what its jobs found, from the run.json of each."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from ppf.artefacts import write_json
from ppf.errors import PPFError
from ppf.records import read
from ppf.records.run import RunRecord
from ppf.report.scores import decimal
from ppf.report.tables import Cell, Column, Table, print_table

Row = Mapping[str, Any]
_REPEATED = ("seed",)  # overrides over whose values the table averages


class Sweep(NamedTuple):
    """What the jobs of a multirun found.

    Args:
        axes: overrides that differ between the jobs, and the ratio if a job has several.
        figures: names of the numbers; rows are sorted by the first one, the smallest first.
        rows: one for each job, or for each ratio of a job.
    """

    axes: Sequence[str]
    figures: Sequence[str]
    rows: Sequence[Row]


def read_sweep(folder: Path) -> Sweep:
    """Reads all finished jobs in a folder and its sub-folders.

    Raises:
        PPFError: no job has finished, or a run.json is damaged.
    """
    files = sorted(folder.rglob("run.json"))
    if not files:
        raise PPFError(f"{folder} has no finished job (no run.json): give a multirun's folder.")
    jobs = [read(file, RunRecord, "delete it and run its job again") for file in files]
    overrides = [dict(word.partition("=")[::2] for word in job["overrides"]) for job in jobs]
    axes = [
        key for key in dict.fromkeys(k for o in overrides for k in o) if _differs(key, overrides)
    ]
    rows = []
    for job, given in zip(jobs, overrides, strict=True):
        chosen = {key: _value(given.get(key, "")) for key in axes}
        for found in job["figures"] or [{"metric": job["metric"]}]:
            rows.append({**found, "seconds": job["seconds"], **chosen})
    names = dict.fromkeys(name for row in rows for name in row)
    if "ratio" in names and "ratio" not in axes and len({row.get("ratio") for row in rows}) > 1:
        axes = ["ratio", *axes]
    figures = [name for name in names if name not in ("ratio", *axes)]
    first = figures[0]
    ratio = "ratio" if "ratio" in axes else first
    rows.sort(key=lambda row: (_sortable(row.get(ratio)), _sortable(row.get(first))))
    return Sweep(axes, figures, rows)


def unfinished(folder: Path) -> list[Path]:
    """Folders of jobs that began and did not finish."""
    begun = sorted(file.parent.parent for file in folder.rglob(".hydra/overrides.yaml"))
    return [job for job in begun if not (job / "run.json").is_file()]


def write_sweep(folder: Path) -> dict[str, Path]:
    """Writes results.json, one row for each job, and results.md, and prints that table.

    Returns:
        The files, by their purpose.
    """
    sweep = read_sweep(folder)
    paths = {"rows": folder / "results.json", "table": folder / "results.md"}
    write_json(paths["rows"], {"rows": sweep.rows})
    shown = table(sweep)
    lines = [shown.names, ["---"] * len(shown.names), *shown.texts]
    text = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    paths["table"].write_text(text, encoding="utf-8")
    print_table(shown)
    return paths


def table(sweep: Sweep) -> Table:
    """Means over seeds ± half their range."""
    axes = [axis for axis in sweep.axes if axis not in _REPEATED]
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in sweep.rows:
        groups.setdefault(tuple(row.get(axis) for axis in axes), []).append(row)
    repeated = len(axes) < len(sweep.axes)
    rows: list[list[Cell]] = []
    for key, same in groups.items():
        figures = [_cell(name, (row.get(name) for row in same)) for name in sweep.figures]
        rows.append([*map(str, key), *[str(len(same))] * repeated, *figures])
    numbers = [Column(name, str) for name in (*["runs"] * repeated, *sweep.figures)]
    return Table([*map(Column, axes), *numbers], rows)


def _cell(name: str, values: Iterable[Any]) -> str:
    """A number, or the mean of several ± half their range; words stay as they are."""
    known = [value for value in values if value is not None]
    if not known or not all(isinstance(value, int | float) for value in known):
        return ", ".join(dict.fromkeys(map(str, known)))
    show = decimal if name.endswith("_ppl") else "{:.4g}".format
    half = (max(known) - min(known)) / 2
    return show(fmean(known)) + (f" ± {show(half)}" if half else "")


def _differs(key: str, overrides: Sequence[Mapping[str, str]]) -> bool:
    return len({given.get(key) for given in overrides}) > 1


def _value(text: str) -> Any:
    """A number where the text is one."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _sortable(value: Any) -> tuple[bool, float, str]:
    """Numbers first, by size; then words; then what is missing."""
    if isinstance(value, int | float):
        return False, float(value), ""
    return True, 0.0 if value is not None else 1.0, str(value)
