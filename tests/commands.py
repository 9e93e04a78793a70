"""Commands in the process of the tests or a copy of it, without the seconds that imports take."""

import multiprocessing
import os
import sys
import warnings
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from ppf.cli.start import main
from tests.ranks import run_two


def exit_code(script: str, arguments: list[str]) -> int:
    """Runs a command in this process, and undoes what it changes there.

    Args:
        script: name of the root script, as in "search".
        arguments: of the command line.
    """
    before = HydraConfig.instance().cfg
    with (
        mock.patch.dict(os.environ),
        mock.patch.object(sys, "argv", [f"{script}.py", *arguments]),
        warnings.catch_warnings(action="ignore"),
    ):
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
        finally:
            GlobalHydra.instance().clear()
            HydraConfig.instance().cfg = before
    return 0


def start(script: str, arguments: list[str], output: Path) -> BaseProcess:
    """Starts a command in a copy of this process.

    Args:
        script: name of the root script.
        arguments: of the command line.
        output: file for all that the command prints.
    """
    context = multiprocessing.get_context("fork")
    process = context.Process(target=_run, args=(script, arguments, output))
    process.start()
    return process


def on_two_ranks(script: str, arguments: list[str], folder: Path) -> list[str]:
    """Runs a command, which has to succeed, on two ranks.

    Args:
        folder: for the files of what both print.

    Returns:
        What each rank prints.
    """
    codes = run_two(_run_rank, script, [*arguments, "fabric.devices=2"], folder)
    said = [(folder / f"rank_{rank}.txt").read_text() for rank in range(2)]
    assert codes == [0, 0], "\n".join(said)
    return said


def _run_rank(script: str, arguments: list[str], folder: Path) -> None:
    _run(script, arguments, folder / f"rank_{os.environ['RANK']}.txt")


def _run(script: str, arguments: list[str], output: Path) -> None:
    with output.open("w") as file:
        sys.stdout = sys.stderr = file
        code = exit_code(script, arguments)
    sys.exit(code)
