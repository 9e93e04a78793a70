"""What a command returns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


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
