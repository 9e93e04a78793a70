"""Schemas of run.json, which every finished run leaves."""

from typing import Annotated

from pydantic import StringConstraints

from ppf.records.values import Number, Record, Word

Cell = int | float | str | None
"""A value of a table; None: not known."""
RUN = "run.json"


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
    figures: list[dict[Word, Cell]]
    seconds: Number
    version: Word | None = None
