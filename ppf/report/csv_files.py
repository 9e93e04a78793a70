"""A logger that writes CSV files without empty columns: one file for each group of metrics."""

import csv
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger
from omegaconf import OmegaConf

from ppf.report.tables import Table

_REST = "metrics"  # file of metrics without a group


class CSVFiles(Logger):
    """Writes metrics such as "search/reward" into the column `reward` of search.csv.

    If a row has a new column, the file is written again with this column. Rows of an earlier
    run in the folder are kept if their step is before the first of this run, which resumes it.

    Args:
        save_dir: folder of the run.
        folder: name of the folder for the files, in the folder of the run.
    """

    def __init__(self, save_dir: str, *, folder: str) -> None:
        super().__init__()
        self._folder = Path(save_dir, folder)
        self._columns: dict[str, list[str]] = {}

    @property
    def name(self) -> str:
        return self._folder.name

    @property
    def version(self) -> str:
        return ""

    @property
    def save_dir(self) -> str:
        return str(self._folder)

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Writes the config of the run as config.yaml."""
        self._folder.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create(params), self._folder / "config.yaml")

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Appends a row to the file of each group; metrics without a group go into every row."""
        groups: dict[str, dict[str, float]] = {}
        for key, value in metrics.items():
            group, _, column = key.rpartition("/")
            groups.setdefault(group, {})[column] = float(value)
        shared = groups.pop("", {})
        clock = {} if step is None else {"step": step}
        for group, row in (groups or {_REST: {}}).items():
            self._append(group.replace("/", "_"), clock | shared | row)

    @rank_zero_only
    def write_table(self, name: str, table: Table) -> None:
        """Writes a table as a file of its own."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / f"{name}.csv").write_text(table.csv, encoding="utf-8", newline="")

    def _append(self, group: str, row: Mapping[str, float]) -> None:
        file, known = self._folder / f"{group}.csv", self._columns.get(group)
        if known is None or not row.keys() <= {*known}:
            rows = _rows(file)
            if known is None:  # the rows are those of an earlier run; this one may resume it
                rows = [old for old in rows if _step(old) < row.get("step", -math.inf)]
            known = list(dict.fromkeys(name for each in (*rows, row) for name in each))
            self._columns[group] = known
            self._folder.mkdir(parents=True, exist_ok=True)
            with file.open("w", encoding="utf-8", newline="") as stream:
                writer = csv.DictWriter(stream, known)
                writer.writeheader()
                writer.writerows(rows)
        with file.open("a", encoding="utf-8", newline="") as stream:
            csv.DictWriter(stream, known).writerow(row)


def _rows(file: Path) -> list[dict[str, str]]:
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _step(row: Mapping[str, str]) -> float:
    try:
        return float(row["step"])
    except (KeyError, TypeError, ValueError):  # it has none, or a killed run has cut the line off
        return math.inf
