"""What a multirun prints and writes in addition to the results of its jobs."""

import logging
import sys
import uuid
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

_OPTUNA = "hydra_plugins.hydra_optuna_sweeper"


class SweepReport(Callback):
    """Prints which job begins, and at the end the table of all of them.

    Attributes:
        multirun: identifier of this multirun, which each job stores when it begins.
    """

    def __init__(self) -> None:
        self.multirun = uuid.uuid4().hex

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Exits with code 1 if several jobs may write their models into one folder."""
        logging.getLogger(_OPTUNA).setLevel(logging.CRITICAL)  # on_job_end tells of failed trials
        given: Any = OmegaConf.to_container(config)  # with its interpolations
        out, swept = given.get("out"), _swept(given["hydra"]) if "out" in given else []
        differs = len(swept) == 1 if "out" in swept else "${" in str(out)
        if out and swept and not differs:
            print(
                "Error: jobs would overwrite each other's models: do not give out=, or give"
                " 'out=FOLDER/${hydra:job.num}'.",
                file=sys.stderr,
            )
            sys.exit(1)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        from ppf.progress import say
        from ppf.records.run import BEGUN_BY

        if config.hydra.mode == RunMode.MULTIRUN:
            if not config.get("plan"):
                begun_by = Path(config.hydra.runtime.output_dir) / BEGUN_BY
                begun_by.parent.mkdir(parents=True, exist_ok=True)
                begun_by.write_text(self.multirun)
            say(f"\nJob {config.hydra.job.num}: {' '.join(config.hydra.overrides.task)}")

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Tells which trials Optuna does not learn from."""
        from ppf.progress import say

        by_optuna = config.hydra.sweeper._target_.startswith(_OPTUNA)
        if config.hydra.mode == RunMode.MULTIRUN and by_optuna and not _has_result(job_return):
            say(f"Job {config.hydra.job.num} has no metric: Optuna goes on without this trial.")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Writes the report. Exits with code 1 without it, or if a job has not finished.

        Hydra would turn an error into a warning.
        """
        from ppf.errors import PPFError, reason
        from ppf.progress import say
        from ppf.records.run import BEGUN_BY, RUN
        from ppf.report.sweep import begun_by, finished_jobs, write_sweep

        folder = Path(config.hydra.sweep.dir)
        jobs = [mark.parent.parent for mark in sorted(folder.rglob(BEGUN_BY))]
        own = [job for job in jobs if begun_by(job) == self.multirun]
        left = [job for job in own if not (job / RUN).is_file()]
        failed = bool(left)
        try:
            if finished_jobs(folder):
                for name, path in write_sweep(folder).items():
                    say(f"{name:<6}  {path}")
        except Exception as error:
            told = error if isinstance(error, PPFError) else reason(error)
            print(f"Error: the multirun has no report: {told}", file=sys.stderr)
            failed = True
        if left:
            say(f"Jobs that did not finish: {len(left)}, the first in {left[0]}")
        if failed:
            sys.exit(1)


def _swept(hydra: dict[str, Any]) -> list[str]:
    """The keys that have several values, so that the multirun may have several jobs."""
    params = hydra["sweeper"].get("params") or {}
    words = [*(f"{key}={value}" for key, value in params.items()), *hydra["overrides"]["task"]]
    parsed = OverridesParser.create().parse_overrides(words)
    last = {override.key_or_group: override for override in parsed}
    return [key for key, override in last.items() if override.is_sweep_override()]


def _has_result(job: JobReturn) -> bool:
    return job.status == JobStatus.COMPLETED and job.return_value is not None
