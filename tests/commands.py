"""Commands in the process of the tests, without the seconds that imports take."""

import os
import sys
import warnings
from unittest import mock

from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from ppf.cli import start as commands


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
            getattr(commands, script)()
        except SystemExit as end:
            return int(end.code or 0)
        finally:
            GlobalHydra.instance().clear()
            HydraConfig.instance().cfg = before
    return 0
