"""run.json: the result of a run. A multirun does not repeat a job whose folder has one."""

from contextlib import suppress
from glob import glob
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

import ppf
from ppf.artefacts import signature, write_json
from ppf.conf import plain
from ppf.digests import contents, digest, with_code
from ppf.errors import PPFError
from ppf.llm.checkpoint import strings
from ppf.records import read
from ppf.records.run import RUN, RunRecord
from ppf.stages.about import task_overrides, version
from ppf.stages.outcome import Outcome

# Keys that do not change results.
_ELSEWHERE = ("paths", "logger", "fabric", "traceback", "plan")


def is_multirun() -> bool:
    """False for a run that Python code starts, without Hydra's command line."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def job_signature(command: str, cfg: DictConfig) -> str:
    """The signature of all that determines the result of a run.

    That is the resolved config, the code of the user's classes, and, in a multirun, the contents of
    the files and folders that any of its values names. Call it before the run changes them.
    """
    folder, cache = str(Path(cfg.paths.run)), Path(cfg.paths.cache)
    config = {key: value for key, value in plain(cfg).items() if key not in _ELSEWHERE}
    config.get("trainer", {}).pop("accelerator", None)  # that of fabric
    read = {key: value for key, value in config.items() if key != "out"}
    named = [glob(text, recursive=True) for text in strings(read)] if is_multirun() else []
    files = [
        digest(path, cache) if path.is_file() else contents(path, cache)
        for path in map(Path, sorted(sum(named, [])))
    ]
    if "out" in config:  # the folder of the run may be moved
        config["out"] = str(config["out"]).removeprefix(folder)
    return signature("run", ppf.__version__, command, with_code(config, cache), *files)


def finished(folder: Path, config: str) -> dict[str, Any] | None:
    """The run.json of a finished job; None: there is none with the signature `config`."""
    with suppress(PPFError):
        found = read(folder / RUN, RunRecord, "run the command again")
        if found["config"] == config:
            return found
    return None


def write(folder: Path, command: str, config: str, outcome: Outcome, seconds: float) -> None:
    """Writes the run.json of a finished run.

    Args:
        config: signature of the job.
    """
    record = {
        "command": command,
        "overrides": task_overrides(),
        "config": config,
        "metric": outcome.metric,
        "figures": list(outcome.figures),
        "seconds": seconds,
        "version": version(),
    }
    write_json(folder / RUN, record)
