"""What all commands share: config checks, seeds, and the removal of a failed run's folder."""

import importlib
import importlib.util
import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import lightning
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig

from ppf.artefacts import locked
from ppf.cli.checks import check, check_unread
from ppf.cli.launch import check_launch
from ppf.cli.outcome import Job, is_multirun, set_aside
from ppf.conf import SECRET, plain
from ppf.llm.loading import dtype_name, resolve_dtype
from ppf.llm.sources import check_source
from ppf.plan import show
from ppf.processes import launch, process_count
from ppf.progress import say
from ppf.ranks import Ranks
from ppf.records.run import Outcome
from ppf.report.loggers import open_loggers
from ppf.report.origin import task_overrides, version

CommandTask = Callable[[DictConfig, Fabric], Outcome | None]
"""Does a command's work on the resolved config; None: there is nothing to tell."""
Check = Callable[[DictConfig, Sequence[str]], None]
"""Raises PPFError for a config that cannot work, and for overrides that the command ignores."""


@dataclass(frozen=True)
class Command:
    """A command's work.

    Args:
        check_relations: checks keys against each other, after each key has been checked alone.
        one_process: the task does not share its work between processes.
    """

    task: CommandTask
    check_relations: Check | None
    one_process: bool


def command(
    check_relations: Check | None = None, *, one_process: bool = False
) -> Callable[[CommandTask], Command]:
    """Turns a task into a command; arguments as for `Command`."""
    return lambda task: Command(task, check_relations, one_process)


def run(name: str, cfg: DictConfig, overrides: Sequence[str] | None = None) -> float | None:
    """Runs a command on its composed config.

    A job of a multirun that has finished before, in the same folder, is not repeated.

    Args:
        name: of the module in `ppf.cli`, and of the config.
        overrides: that the config has; None: those of the command line.

    Returns:
        The metric that sweeps minimise: log-perplexity in nats per token for `search`, `evaluate`
        and `recover`, the normalised mean squared error for `train`; None for other commands, for a
        plan, and if it is not finite.

    Raises:
        PPFError: the config is wrong, or the work fails for a reason that a user can fix.
    """
    found = find(name)
    plan = cfg.get("plan")
    with _tidied(cfg):
        _check(cfg, found, task_overrides() if overrides is None else overrides)
        if plan:
            show(cfg)
    if plan:
        discard(Path(cfg.paths.run))
        return None
    folder = Path(cfg.paths.run)
    if not is_multirun():
        return _work(found, cfg, Job(name, cfg))
    # The jobs of a multirun that was killed may go on while the same command runs again.
    alone = process_count(cfg.fabric) == 1
    with locked(folder) if alone else nullcontext():
        job = Job(name, cfg)
        if done := job.finished():
            made_by = done.get("version") or "unknown"
            other = "" if made_by == version() else f" (version: {made_by})"
            say(f"Already finished: {folder}{other}")
            return done["metric"]
        set_aside(folder)
        return _work(found, cfg, job)


def find(name: str) -> Command:
    """The command `name`: the function `main` of its stage, with the stage's own check."""
    stage = None
    if importlib.util.find_spec(f"ppf.stages.{name}"):
        stage = importlib.import_module(f"ppf.stages.{name}")
    if stage is None or not hasattr(stage, "main"):
        found: Command = importlib.import_module(f"ppf.cli.{name}").main
        return found
    check = getattr(stage, "check", None)
    relations = (lambda cfg, _: check(cfg)) if check else None
    return Command(stage.main, relations, getattr(stage, "ONE_PROCESS", False))


def _work(found: Command, cfg: DictConfig, job: Job) -> float | None:
    """Does a command's work and writes its run.json; returns the metric of `run`."""
    start = time.perf_counter()
    lightning.seed_everything(cfg.seed, verbose=False)
    fabric = instantiate(cfg.fabric)
    # Fabric has set the rank by now: only rank 0's loggers write.
    folder = Path(cfg.paths.run)
    logged = {key: value for key, value in plain(cfg).items() if key not in SECRET}
    with _tidied(cfg), open_loggers(cfg.logger, folder, logged) as loggers:
        fabric.loggers.extend(loggers)
        launch(fabric)
        share_run_folder(cfg, fabric)
        share_dtype(cfg, fabric)
        outcome = found.task(cfg, fabric) or Outcome()
    if fabric.is_global_zero:
        job.write(outcome, time.perf_counter() - start)
    fabric.barrier()  # what follows in a user's script finds the results written
    metric = outcome.metric
    return metric if metric is not None and math.isfinite(metric) else None


@contextmanager
def _tidied(cfg: DictConfig) -> Iterator[None]:
    """A context that removes the run's folders after an error, if they hold no results."""
    try:
        yield
    except Exception:
        if not is_multirun():
            discard(Path(cfg.paths.run))
            if "out" in cfg:
                with suppress(OSError):  # there is none, or it is not empty
                    Path(cfg.out).rmdir()
        elif not cfg.get("plan"):  # the multirun's report counts the jobs without results
            set_aside(Path(cfg.paths.run))
        raise


def _check(cfg: DictConfig, found: Command, overrides: Sequence[str]) -> None:
    """Checks everything that can be checked before the work starts."""
    check(cfg)
    check_unread(cfg, overrides)
    if found.check_relations:
        found.check_relations(cfg, overrides)
    if "model" in cfg and not cfg.get("plan"):
        check_source(cfg.model)
    check_launch(cfg, one_process=found.one_process)


def share_run_folder(cfg: DictConfig, ranks: Ranks) -> None:
    """Makes all ranks use rank 0's run folder; under torchrun and Slurm, each has made its own."""
    own = Path(cfg.paths.run)
    cfg.paths.run = ranks.broadcast(str(own))
    if Path(cfg.paths.run) != own:
        discard(own)


def share_dtype(cfg: DictConfig, ranks: Fabric) -> None:
    """Makes all ranks use the number format that `model.dtype=auto` means on rank 0's processor."""
    if "model" in cfg and ranks.world_size > 1:
        own = dtype_name(resolve_dtype(cfg.model.dtype, ranks.device))
        if (first := ranks.broadcast(own)) != own:
            cfg.model.dtype = first


def discard(folder: Path) -> None:
    """Removes a run folder that holds only Hydra's files, and its parent folder if it is empty.

    A run that Python code has started leaves an empty folder, which is removed too.
    """
    hydra = folder / ".hydra"
    if not hydra.is_dir():
        if not HydraConfig.initialized():
            with suppress(OSError):  # it is not empty
                folder.rmdir()
                folder.parent.rmdir()
    elif not any(path.is_file() and path.parent != hydra for path in folder.rglob("*")):
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # other runs of that day are in it
            folder.parent.rmdir()
