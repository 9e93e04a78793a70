"""Loggers for Trainer and Fabric alike: W&B, which never asks for a key, and CSV files."""

import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning.fabric.loggers import Logger
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger as TrainerLogger
from lightning.pytorch.loggers import WandbLogger
from matplotlib.figure import Figure
from PIL import Image

from ppf.errors import PPFError
from ppf.report.style import png

_STEP = "trainer/global_step"  # the horizontal axis that WandbLogger sends with every metric


def build_loggers(
    cfg: Mapping[str, Any], folder: str | Path, config: dict[str, Any]
) -> list[TrainerLogger]:
    """The loggers of the config group `logger`, each told the config of the run.

    Args:
        cfg: name → `_target_` and its arguments; every logger gets `save_dir` on top.
        folder: of the run; all that loggers write goes below it.
        config: the resolved config as plain dicts and lists.

    Raises:
        PPFError: W&B shall be online but has no API key, or it does not start.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    loggers = [instantiate(node, save_dir=str(folder)) for node in cfg.values()]
    with warnings.catch_warnings():
        # CSVLogger mistakes the other files in the run's folder for those of an earlier run.
        warnings.filterwarnings("ignore", message="Experiment logs directory")
        for logger in loggers:
            logger.log_hyperparams(config)
    return loggers


def wandb_logger(save_dir: str, *, mode: str, init_timeout: float, **arguments: Any) -> WandbLogger:
    """A new W&B run that prints nothing.

    Args:
        mode: "offline", "online" or "disabled".
        init_timeout: seconds that its server may take to answer.
        arguments: to `wandb.init`.
    """
    run = _start(init_timeout, {"dir": save_dir, "mode": mode, **arguments})
    return WandbLogger(save_dir=save_dir, project=arguments["project"], experiment=run)


@rank_zero_only
def _start(init_timeout: float, arguments: dict[str, Any]) -> Any:
    import wandb

    settings = wandb.Settings(silent=True, console="off", init_timeout=init_timeout)
    wandb.setup(settings)  # silent from now on: it raises an error instead of asking for a key
    try:
        run = wandb.init(settings=settings, reinit="finish_previous", **arguments)
    except wandb.errors.Error as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise PPFError(
            f"W&B does not start ({reason}): run `wandb login`, or set logger.wandb.mode=offline."
        ) from error
    run.define_metric(_STEP)
    run.define_metric("*", step_metric=_STEP, step_sync=True)
    return run


def log_figure(loggers: Sequence[Logger], name: str, figure: Figure, step: int | None) -> None:
    """Sends a figure, as an image, to every W&B run."""
    for logger in _wandb(loggers):
        logger.log_image(name, [Image.open(BytesIO(png(figure)))], step)


def log_table(
    loggers: Sequence[Logger], name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> None:
    """Sends a table to every W&B run; a column holds values of one type, or None."""
    for logger in _wandb(loggers):
        logger.log_table(name, list(columns), [list(row) for row in rows])


@rank_zero_only
def log_artifact(loggers: Sequence[Logger], path: str | Path, name: str, type: str) -> None:
    """Sends a file to every W&B run as a versioned artifact, as in type="policy".

    An offline run sends it when it is synchronised: the file must stay where it is.
    """
    for logger in _wandb(loggers):
        import wandb

        artifact = wandb.Artifact(name, type)
        artifact.add_file(str(Path(path).resolve()), policy="immutable", skip_cache=True)
        logger.experiment.log_artifact(artifact)


@rank_zero_only
def finish(loggers: Sequence[Logger], *, failed: bool) -> None:
    """Writes what is still in memory and ends the W&B runs, so that the next job gets a new one."""
    for logger in loggers:
        logger.finalize("failed" if failed else "success")
    for logger in _wandb(loggers):
        logger.experiment.finish(exit_code=int(failed))


def _wandb(loggers: Sequence[Logger]) -> list[WandbLogger]:
    return [logger for logger in loggers if isinstance(logger, WandbLogger)]
