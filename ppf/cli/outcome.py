"""run.json: the result of a run. A multirun does not repeat a job whose folder has one."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

import ppf
from ppf.artefacts import signature, write_json
from ppf.conf import plain
from ppf.digests import contents, digest, named_files, with_code
from ppf.errors import PPFError
from ppf.llm.loading import dtype_name, resolve_dtype
from ppf.llm.sources import MODEL_FILES, pinned
from ppf.processes import kind_of_device, process_count, slurm_tasks
from ppf.records import read
from ppf.records.agent import agent_folder
from ppf.records.run import LARGEST, RUN, Outcome, RunRecord
from ppf.report.origin import task_overrides, version
from ppf.stages.budgets import machine_identity

_SET_ASIDE = ".hydra/earlier.json"
_OF_OTHERS = (".hydra", "wandb")  # Hydra writes before each job, and `wandb sync` after it
# Keys that do not change results.
_ELSEWHERE = ("paths", "logger", "fabric", "traceback", "upstream", "plan")

_WHOLE = ("tasks", "text.source.path", "text.training.source.path")  # every file of these folders
# Keys whose values may be paths of files or folders.
_NAMED = (
    "policy",
    "path",
    "search",
    "search.start",
    "text.path",
    "text.training.more.path",
    "model.path",
    "sampler.of.paths",
    "sampler.of.agent.path",
    *_WHOLE,
)
_OF_AGENTS = ("search", "sampler.of.agent.path")
_DATA_FILES = ("text.source.data_files", "text.training.source.data_files")

_READ = (*MODEL_FILES, ".py")  # files of another folder that a command may read


def is_multirun() -> bool:
    """False for a run that Python code starts, without Hydra's command line."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


class Job:
    """A run of a command, as its folder remembers it.

    Args:
        command: its name.
        cfg: its config. Files that it names, and the code of the user's classes, count as they are
            now, before the run reads them.
    """

    def __init__(self, command: str, cfg: DictConfig) -> None:
        self._command, self._folder = command, Path(cfg.paths.run)
        config = {key: value for key, value in plain(cfg).items() if key not in _ELSEWHERE}
        config.get("trainer", {}).pop("accelerator", None)  # that of fabric
        self._config = with_code(config, Path(cfg.paths.cache))
        # Otherwise the ranks must agree, whichever machines they are on.
        if process_count(cfg.fabric) == slurm_tasks() == 1:
            self._config |= _here(cfg)
        self._read = _files_read(cfg)

    def finished(self) -> dict[str, Any] | None:
        """The run.json that this job has left in its folder; None: there is none.

        One that was set aside is put back, unless another job has written into the folder since.
        """
        own, place = self._identity(), self._folder / RUN
        earlier = self._folder / _SET_ASIDE
        for file in (place, earlier, place):  # another rank may put it back between two reads
            with suppress(PPFError):
                found = read(file, RunRecord, "run the command again")
                if found["config"] == own and (file == place or _is_newest(earlier, self._folder)):
                    with suppress(FileNotFoundError):
                        file.replace(place)
                    return found
        return None

    def write(self, outcome: Outcome, seconds: float) -> None:
        """Writes the run.json of the finished run."""
        record = {
            "command": self._command,
            "overrides": task_overrides(),
            "config": self._identity(),
            "metric": outcome.metric,
            "figures": [{k: _known(cell) for k, cell in row.items()} for row in outcome.figures],
            "seconds": seconds,
            "version": version(),
        }
        write_json(self._folder / RUN, record)
        (self._folder / _SET_ASIDE).unlink(missing_ok=True)  # its other files are overwritten

    def _identity(self) -> str:
        """Signature of everything that determines the run's result."""
        config = self._config
        out = Path(config.get("out") or "")
        if out.is_relative_to(self._folder):  # the results may be moved
            config = config | {"out": str(out.relative_to(self._folder))}
        if source := config.get("model", {}).get("source"):  # the run may download it
            config = config | {"model": config["model"] | {"source": pinned(source)}}
        return signature("run", ppf.__version__, self._command, config, *self._read)


def _known(cell: Any) -> Any:
    """The cell of a table; None for a number that no report could add up."""
    return None if isinstance(cell, float) and abs(cell) > LARGEST else cell


def set_aside(folder: Path) -> None:
    """Moves a job's run.json to where no report finds it: the present config has failed."""
    with suppress(FileNotFoundError):
        (folder / RUN).replace(folder / _SET_ASIDE)


def _is_newest(record: Path, folder: Path) -> bool:
    """Whether no file of the folder is newer than a run.json, which a job writes last."""
    written = record.stat().st_mtime_ns
    files = (file for file in folder.rglob("*") if file.is_file())
    own = (file for file in files if file.relative_to(folder).parts[0] not in _OF_OTHERS)
    return all(file.stat().st_mtime_ns <= written for file in own)


def _here(cfg: DictConfig) -> dict[str, Any]:
    """What this machine makes of the config: number formats, and measured prices."""
    on_cpu = kind_of_device(cfg.fabric.accelerator) == "cpu"
    device = torch.device("cpu" if on_cpu else "cuda")
    found: dict[str, Any] = {
        key: dtype_name(resolve_dtype("auto", device))
        for key in ("dtype", "model.dtype")
        if OmegaConf.select(cfg, key) == "auto"
    }
    if "budget" in cfg and instantiate(cfg.budget.cost).measured:
        found["machine"] = machine_identity(device, cfg.model)
    return found


def _files_read(cfg: DictConfig) -> list[Any]:
    """The contents of the files and folders that the config names, if a job may be repeated."""
    cache, found = Path(cfg.paths.cache), list[Any]()
    for key in _NAMED if is_multirun() else ():
        value = OmegaConf.select(cfg, key)
        several = value if isinstance(value, ListConfig) else [value]
        for path in (Path(each) for each in several if isinstance(each, str)):
            path = agent_folder(path) if key in _OF_AGENTS else path
            if path.is_file():
                found.append(digest(path, cache))
            elif path.is_dir():
                suffixes = () if key in _WHOLE else _READ
                found.append(contents(path, cache, suffixes, subfolders=key != "model.path"))
    given = [OmegaConf.select(cfg, key) for key in _DATA_FILES if is_multirun()]
    return found + [named_files(plain(value), cache) for value in given if value]
