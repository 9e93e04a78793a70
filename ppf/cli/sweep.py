"""What a multirun prints and writes in addition to the results of its jobs."""

import sys
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class SweepReport(Callback):
    """Prints which job begins, and at the end the table of all of them."""

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        from hydra.types import RunMode

        from ppf.progress import say

        if config.hydra.mode == RunMode.MULTIRUN:
            say(f"\nJob {config.hydra.job.num}: {' '.join(config.hydra.overrides.task)}")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Exits with code 1 if a job has not finished: Hydra would turn an error into a warning."""
        from ppf.progress import say
        from ppf.report.sweep import unfinished
        from ppf.report.sweep_page import write_sweep

        folder = Path(config.hydra.sweep.dir)
        left = unfinished(folder)
        if any(folder.rglob("run.json")):
            for name, path in write_sweep(folder).items():
                say(f"{name:<6}  {path}")
        if left:
            say(f"Jobs that did not finish: {len(left)}, the first in {left[0]}")
            sys.exit(1)
