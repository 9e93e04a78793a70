"""Schemas of run.json, which every finished run leaves, and of a multirun's files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field, StringConstraints

from ppf.records.values import Number, Record, Word

Figure = float | str | None
"""A cell of a table."""
RUN = "run.json"
BEGUN_BY = ".hydra/multirun"
"""File in a job's folder with the identifier of the multirun that began the job last."""


@dataclass(frozen=True)
class Outcome:
    """The result of a command.

    Args:
        metric: what sweeps minimise; None: the command has none.
        figures: rows for the table of a sweep, by name. Rows are ranked by the first number that is
            not the ratio; smaller is better.
    """

    metric: float | None = None
    figures: Sequence[Mapping[str, float | str | None]] = field(default_factory=list)


class RunRecord(Record):
    """The contents of a run.json.

    Args:
        overrides: of the command line, as in "ratio=0.3".
        config: signature of the resolved config.
        metric: what sweeps minimise; null: not finite, or the command has none.
        figures: rows for the table of a sweep; a search has one row for each ratio.
        seconds: duration of the run.
        version: of the program, with its commit; null: of an older version.
    """

    command: Word
    overrides: list[str]
    config: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{1,64}$")]
    metric: float | None
    figures: list[dict[Word, Figure]]
    seconds: Number
    version: Word | None = None


class RowsRecord(Record):
    """The contents of a multirun's results.json; see `ppf.report.sweep.Sweep`."""

    versions: list[Word]
    axes: list[Word]
    figures: Annotated[list[Word], Field(min_length=1)]
    rows: Annotated[list[dict[Word, Figure]], Field(min_length=1)]
