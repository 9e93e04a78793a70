"""The course of a training: one point after each validation, in a file beside its checkpoints."""

import json
from pathlib import Path
from typing import NamedTuple

from ppf.artefacts import read_if_whole, write_json


class Point(NamedTuple):
    """The state of a training at a validation.

    Args:
        tokens: read so far.
        value: of the metric that the training monitors.
        seconds: of training so far; time that a killed run spent after its last checkpoint is not
            counted.
    """

    tokens: int
    value: float
    seconds: float


class Trace(NamedTuple):
    """Length and loss curve of a training.

    Args:
        tokens: number of tokens read. The exported weights may be those of an earlier validation.
        seconds: training time, summed over all runs.
        curve: mean negative log-likelihood on the validation part, nats per token; empty for
            tune=blockwise, which monitors another loss.
    """

    tokens: int
    seconds: float
    curve: list[Point]

    def then(self, later: "Trace") -> "Trace":
        """This training followed by another one that continued with its weights."""
        tokens, seconds = self.tokens, self.seconds
        curve = [Point(tokens + p.tokens, p.value, seconds + p.seconds) for p in later.curve]
        return Trace(tokens + later.tokens, seconds + later.seconds, [*self.curve, *curve])


def read_curve(file: Path) -> list[Point]:
    """The points of a file; empty if it is missing or damaged."""
    return read_if_whole(file, read_points) or []


def read_points(file: Path) -> list[Point]:
    """The points of a file.

    Raises:
        OSError, ValueError, KeyError, TypeError: it is missing or damaged.
    """
    return [Point(*row) for row in json.loads(file.read_text(encoding="utf-8"))["points"]]


def add_point(file: Path, point: Point) -> None:
    """Adds a point, and removes points of a killed run at or after the same number of tokens."""
    earlier = [known for known in read_curve(file) if known.tokens < point.tokens]
    write_json(file, {"points": [*earlier, point]})
