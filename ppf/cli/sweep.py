"""What a multirun prints and writes in addition to the results of its jobs."""

import logging
import re
import sys
import uuid
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

_OF_EACH_JOB = {"paths.run", "hydra:runtime.output_dir", "hydra:job.num", "hydra:job.id"}
_OPTUNA = "hydra_plugins.hydra_optuna_sweeper"
BEGUN_BY = ".hydra/multirun"  # in a job's folder: the multirun that began the job last


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
        parts = re.findall(r"\$\{([\w.:]+)\}", str(out))
        differs = swept == ["out"] or not {*swept} - {part.split(".")[0] for part in parts}
        if out and not differs and ("out" in swept or _OF_EACH_JOB.isdisjoint(parts)):
            print(
                "Error: jobs would overwrite each other's models: do not give out=, or give"
                " 'out=FOLDER/${hydra:job.num}'.",
                file=sys.stderr,
            )
            sys.exit(1)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        from ppf.progress import say

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
        # Before `return_value`, which raises the error of a job that failed.
        known = job_return.status == JobStatus.COMPLETED and job_return.return_value is not None
        if config.hydra.mode == RunMode.MULTIRUN and by_optuna and not known:
            say(f"Job {config.hydra.job.num} has no metric: Optuna goes on without this trial.")

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Writes the report. Exits with code 1 without it, or if a job has not finished.

        Hydra would turn an error into a warning.
        """
        from ppf.errors import PPFError, reason
        from ppf.progress import say
        from ppf.records.run import RUN
        from ppf.report.sweep import write_sweep

        folder = Path(config.hydra.sweep.dir)
        own = [m for m in sorted(folder.rglob(BEGUN_BY)) if m.read_text() == self.multirun]
        left = [m.parent.parent for m in own if not (m.parent.parent / RUN).is_file()]
        failed = bool(left)
        try:
            if any(folder.rglob(RUN)):
                write_sweep(folder)
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
