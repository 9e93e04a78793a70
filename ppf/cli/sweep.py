"""What a multirun prints and writes in addition to the results of its jobs."""

import logging
import sys
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

_OPTUNA = "hydra_plugins.hydra_optuna_sweeper"


class SweepReport(Callback):
    """Prints which job begins, and at the end the table of all of them.

    Attributes:
        earlier: job folders of earlier multiruns, and when their jobs began. The table leaves out
            numbered ones that this multirun does not begin again.
    """

    def __init__(self) -> None:
        self.earlier: dict[Path, int] = {}

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        from ppf.report.sweep import begun

        self.earlier = begun(Path(config.hydra.sweep.dir))
        logging.getLogger(_OPTUNA).setLevel(logging.CRITICAL)  # on_job_end tells of failed trials

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        from ppf.progress import say

        if config.hydra.mode == RunMode.MULTIRUN:
            say(f"\nJob {config.hydra.job.num}: {' '.join(config.hydra.overrides.task)}")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Tells which trials Optuna does not learn from."""
        from ppf.progress import say

        by_optuna = config.hydra.sweeper._target_.startswith(_OPTUNA)
        if config.hydra.mode == RunMode.MULTIRUN and by_optuna and not _has_result(job_return):
            say(f"Job {config.hydra.job.num} has no metric: Optuna goes on without this trial.")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Exits with code 1 if a job has not finished: Hydra would turn an error into a warning."""
        from ppf.progress import say
        from ppf.report.sweep import begun
        from ppf.report.sweep_page import write_sweep

        folder = Path(config.hydra.sweep.dir)
        jobs = begun(folder)
        before = {job for job, time in self.earlier.items() if jobs.get(job) == time}
        others = {job for job in before if job.name.isdigit()}
        begun_now = [job for job in sorted(jobs) if job not in before]
        left = [job for job in begun_now if not (job / "run.json").is_file()]
        if any(file.parent not in others for file in folder.rglob("run.json")):
            for name, path in write_sweep(folder, others).items():
                say(f"{name:<6}  {path}")
        if left:
            say(f"Jobs that did not finish: {len(left)}, the first in {left[0]}")
            sys.exit(1)


def _has_result(job: JobReturn) -> bool:
    return job.status == JobStatus.COMPLETED and job.return_value is not None
