import multiprocessing
import os
import signal
import time
import warnings
from io import StringIO
from typing import Any

import pytest
from lightning import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from rich.console import Console

from ppf import progress
from ppf.progress import Stopwatch, quiet_trainer, track


@pytest.fixture(autouse=True)
def _no_other_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The traceback of another test may still hold a loop that is shown."""
    monkeypatch.setattr(progress, "_showing", [])


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> StringIO:
    target = StringIO()
    monkeypatch.setattr(progress, "console", Console(file=target))
    return target


def test_only_long_loops_are_mentioned(said: StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(track(range(3), "Counting")) == [0, 1, 2]
    assert said.getvalue() == ""
    clock = iter([0.0, 1.0, 2.5, 20.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    list(track(range(3), "Counting"))
    assert said.getvalue() == "Counting: 3/3, 20 s elapsed, 0 s left\n"


def test_the_time_of_an_inner_part_is_not_counted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 3.0, 4.0, 9.0, 10.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    clock = Stopwatch()
    with clock("outer"):
        for _ in range(2):
            with clock("inner"):
                pass
    assert clock.seconds == {"outer": 3.0, "inner": 7.0}


class Terminated(BoringModel):
    def training_step(self, *given: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return super().training_step(*given)


def _train() -> None:
    warnings.simplefilter("ignore")  # pytest makes errors of them
    off = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    with quiet_trainer():
        Trainer(accelerator="cpu", max_epochs=1, enable_checkpointing=False, **off).fit(
            Terminated()
        )


def test_a_training_that_is_terminated_says_so_to_the_shell() -> None:
    process = multiprocessing.get_context("fork").Process(target=_train)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGTERM
