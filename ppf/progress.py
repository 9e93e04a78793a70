"""Progress of long work: a bar with the time left on a terminal, plain lines elsewhere."""

import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress

T = TypeVar("T")
console = Console(soft_wrap=True)  # quiet on all ranks but rank 0
_LINE_EVERY = 15.0  # seconds
_SHORT = 2.0  # seconds; without a terminal, shorter loops are not mentioned
_showing: list[str] = []  # labels of the loops that are shown


def say(message: str) -> None:
    """Prints one line of plain text."""
    console.print(message, markup=False, highlight=False)


def warning(message: str) -> None:
    """Prints a warning on every rank; `say` prints on rank 0 only."""
    print(f"Warning: {message}", flush=True)


def track(items: Iterable[T], label: str) -> Iterator[T]:
    """Yields `items`, and shows their number and the remaining time.

    A loop inside another one that is shown is not shown itself.
    """
    total = len(items) if isinstance(items, Sized) else None
    if console.quiet or _showing or total == 0:
        yield from items
        return
    show = _bar if console.is_terminal else _lines
    _showing.append(label)
    try:
        yield from show(items, label, total)
    finally:
        _showing.remove(label)


def _bar(items: Iterable[T], label: str, total: int | None) -> Iterator[T]:
    columns = Progress.get_default_columns()
    with Progress(*columns, MofNCompleteColumn(), console=console) as progress:
        yield from progress.track(items, total=total, description=label)


def _lines(items: Iterable[T], label: str, total: int | None) -> Iterator[T]:
    start = shown = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        ended = done == total and now - start > _SHORT
        if total and (now - shown > _LINE_EVERY or ended):
            left = (now - start) / done * (total - done)
            say(f"{label}: {done}/{total}, {now - start:.0f} s elapsed, {left:.0f} s left")
            shown = now


class Stopwatch:
    """Adds up the time of named parts: `with clock("labelling"): ...`.

    The time of a part inside another one counts for the inner part only.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside = 0.0  # seconds of parts inside the present one

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start, before = time.monotonic(), self._inside
        self._inside = 0.0
        try:
            yield
        finally:
            whole = time.monotonic() - start
            self.seconds[part] = self.seconds.get(part, 0.0) + whole - self._inside
            self._inside = before + whole


@contextmanager
def quiet_trainer() -> Iterator[None]:
    """Without the remarks of Lightning's Trainer on devices, loaders and folders.

    SIGTERM still ends the process. Lightning's handler would end the training instead, with exit
    code 0, and a multirun would go on; but Lightning also calls a handler that exists.
    """
    own = threading.current_thread() is threading.main_thread()
    own = own and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if own:
        signal.signal(signal.SIGTERM, _end)
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        try:
            yield
        finally:
            logger.setLevel(level)
            if own:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end(number: int, _: object) -> None:
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
