"""Progress of long work: a bar with the time left on a terminal, plain lines elsewhere."""

import logging
import time
import warnings
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")
console = Console(soft_wrap=True)  # quiet on all ranks but rank 0
_LINE_EVERY = 15.0  # seconds


def say(message: str) -> None:
    """One line of plain text for people."""
    console.print(message, markup=False, highlight=False)


def warning(message: str) -> None:
    """One line of plain text that every rank prints, the silent ones too."""
    print(f"Warning: {message}", flush=True)


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yields `items` while showing how far they are and how long they will still take."""
    if console.quiet:
        return iter(items)
    if total is None:
        total = len(items) if isinstance(items, Sized) else None
    return _bar(items, label, total) if console.is_terminal else _lines(items, label, total)


def _bar(items: Iterable[T], label: str, total: int | None) -> Iterator[T]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield from progress.track(items, total=total, description=label)


def _lines(items: Iterable[T], label: str, total: int | None) -> Iterator[T]:
    start = shown = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if total and (now - shown > _LINE_EVERY or done == total):
            left = (now - start) / done * (total - done)
            say(f"{label}: {done}/{total}, {now - start:.0f} s gone, {left:.0f} s left")
            shown = now


class Stopwatch:
    """Adds up the time of named parts: `with clock("labelling"): ...`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.monotonic() - start


@contextmanager
def quiet_trainer() -> Iterator[None]:
    """Without the remarks of Lightning's Trainer on devices, loaders and folders."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        try:
            yield
        finally:
            logger.setLevel(level)
