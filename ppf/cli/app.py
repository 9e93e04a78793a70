"""What surrounds every command: checks of the config, seeds, Fabric, loggers, and run.json."""

import importlib
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import lightning
from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig

from ppf.artefacts import locked
from ppf.cli.checks import check
from ppf.cli.launch import check_processes
from ppf.cli.outcome import finished, is_multirun, job_signature, write
from ppf.conf import SECRET, name_by_paths, plain
from ppf.llm.loading import dtype_name, resolve_dtype
from ppf.llm.sources import checkpoint_of
from ppf.plan import check_capacity, show
from ppf.processes import kind_of_device, launch, process_count
from ppf.progress import say
from ppf.ranks import Ranks
from ppf.records.run import RUN
from ppf.report.loggers import open_loggers
from ppf.stages.outcome import Outcome


def run(name: str, cfg: DictConfig) -> float | None:
    """Runs a command on its composed config: `main` of `ppf.stages.<name>`.

    A job of a multirun that has finished before, in the same folder, is not repeated.

    Returns:
        The metric that sweeps minimise: log-perplexity in nats per token for `search`, `evaluate`
        and `recover`, the normalised mean squared error for `train`; None for other commands, for a
        plan, and if it is not finite.

    Raises:
        PPFError: the config is wrong, or the work fails for a reason that a user can fix.
    """
    name_by_paths(cfg)
    folder, several = Path(cfg.paths.run), is_multirun()
    with _tidied(cfg):
        _check(name, cfg)
        if cfg.get("plan"):
            show(cfg)
            discard(folder)
            return None
    # The jobs of a multirun that was killed may go on while the same command runs again.
    alone = process_count(cfg.fabric) == 1
    with locked(folder) if several and alone else nullcontext():
        config = job_signature(name, cfg)
        if several and (done := finished(folder, config)):
            say(f"Already finished: {folder}")
            return done["metric"]
        (folder / RUN).unlink(missing_ok=True)  # its other files will be overwritten
        return _work(name, cfg, config)


def _check(name: str, cfg: DictConfig) -> None:
    """Checks everything that can be checked before the work starts."""
    for group in ("fabric", "trainer"):
        if "accelerator" in cfg.get(group, {}):
            cfg[group].accelerator = kind_of_device(cfg[group].accelerator)
    check(cfg)
    stage = importlib.import_module(f"ppf.stages.{name}")
    if hasattr(stage, "check"):
        stage.check(cfg)
    if cfg.get("plan"):
        return
    check_processes(cfg, one_process=getattr(stage, "ONE_PROCESS", False))
    if "model" in cfg:
        checkpoint_of(cfg.model, cfg.paths.cache)  # what is missing is told before other work


def _work(name: str, cfg: DictConfig, config: str) -> float | None:
    """Does a command's work and writes its run.json; returns the metric of `run`."""
    start = time.perf_counter()
    lightning.seed_everything(cfg.seed, verbose=False)
    fabric = instantiate(cfg.fabric)
    # Fabric has set the rank by now: only rank 0's loggers write.
    logged = {key: value for key, value in plain(cfg).items() if key not in SECRET}
    with _tidied(cfg), open_loggers(cfg.logger, Path(cfg.paths.run), logged) as loggers:
        fabric.loggers.extend(loggers)
        launch(fabric)
        share_run_folder(cfg, fabric)
        share_dtype(cfg, fabric)
        if "model" in cfg:
            check_capacity(cfg, fabric)
        main = importlib.import_module(f"ppf.stages.{name}").main
        outcome = main(cfg, fabric) or Outcome()
    if fabric.is_global_zero:
        write(Path(cfg.paths.run), name, config, outcome, time.perf_counter() - start)
    fabric.barrier()  # what follows in a user's script finds the results written
    metric = outcome.metric
    return metric if metric is not None and math.isfinite(metric) else None


@contextmanager
def _tidied(cfg: DictConfig) -> Iterator[None]:
    """Removes the run's folders after an error, if they hold no results."""
    try:
        yield
    except Exception:
        if is_multirun() and not cfg.get("plan"):
            (Path(cfg.paths.run) / RUN).unlink(missing_ok=True)  # no report counts an earlier one
        elif not is_multirun():
            discard(Path(cfg.paths.run))
            with suppress(OSError):  # there is none, or it is not empty
                Path(cfg.get("out") or cfg.paths.run).rmdir()
        raise


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
    """Removes a run folder without results, and its parent folder if that is empty then."""
    hydra = folder / ".hydra"
    if not any(path.is_file() and path.parent != hydra for path in folder.rglob("*")):
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # other runs of that day are in it
            folder.parent.rmdir()
