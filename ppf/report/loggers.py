"""Loggers for Trainer and Fabric: CSV files, and W&B without its question for an API key."""

import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from hydra.utils import instantiate
from lightning.fabric.loggers import Logger
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger as TrainerLogger
from lightning.pytorch.loggers import WandbLogger
from matplotlib.figure import Figure
from PIL import Image

from ppf.errors import PPFError
from ppf.ranges import Count
from ppf.report.style import png

_STEP = "trainer/global_step"  # WandbLogger sends it with every metric, as the horizontal axis


def build_loggers(
    cfg: Mapping[str, Any], folder: str | Path, config: dict[str, Any]
) -> list[TrainerLogger]:
    """Creates the loggers of the config group `logger`, and logs the config of the run.

    Args:
        cfg: name → `_target_` and its arguments; each logger also gets `save_dir`.
        folder: the run's folder; loggers write below it.
        config: the resolved config as plain dicts and lists.

    Raises:
        PPFError: W&B does not start, for example because an online run has no API key.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    loggers = [instantiate(node, save_dir=str(folder)) for node in cfg.values()]
    with warnings.catch_warnings():
        # CSVLogger takes the other files in the run's folder for those of an earlier run.
        warnings.filterwarnings("ignore", message="Experiment logs directory")
        for logger in loggers:
            logger.log_hyperparams(config)
    return loggers


def wandb_logger(
    save_dir: str,
    *,
    mode: Literal["offline", "online", "disabled"],
    init_timeout: Count,
    **arguments: Any,
) -> WandbLogger:
    """A logger with a new W&B run that prints nothing.

    Args:
        save_dir: folder for the run's files.
        mode: "offline", "online" or "disabled".
        init_timeout: seconds to wait for W&B's server.
        arguments: further arguments of `wandb.init`.

    Raises:
        PPFError: W&B does not start.
    """
    run = _start(init_timeout, {"dir": save_dir, "mode": mode, **arguments})
    return WandbLogger(save_dir=save_dir, project=arguments["project"], experiment=run)


@rank_zero_only
def _start(init_timeout: float, arguments: dict[str, Any]) -> Any:
    import wandb

    settings = wandb.Settings(silent=True, console="off", init_timeout=init_timeout)
    wandb.setup(settings)  # silent: without a key it raises an error instead of asking
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
    """Logs a figure as an image to every W&B run.

    Args:
        step: training step of the figure; None: W&B's own count.
    """
    for logger in _wandb(loggers):
        logger.log_image(name, [Image.open(BytesIO(png(figure)))], step)


def log_table(
    loggers: Sequence[Logger], name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]
) -> None:
    """Logs a table to every W&B run. A column holds values of one type, or None."""
    for logger in _wandb(loggers):
        logger.log_table(name, list(columns), [list(row) for row in rows])


@rank_zero_only
def log_artifact(loggers: Sequence[Logger], path: str | Path, name: str, type: str) -> None:
    """Logs a file to every W&B run as a versioned artifact.

    An offline run uploads the file at `wandb sync`. Until then it must stay in its place.

    Args:
        type: W&B's type of the artifact, for example "policy".
    """
    for logger in _wandb(loggers):
        import wandb

        artifact = wandb.Artifact(name, type)
        artifact.add_file(str(Path(path).resolve()), policy="immutable", skip_cache=True)
        logger.experiment.log_artifact(artifact)


@rank_zero_only
def finish(loggers: Sequence[Logger], *, failed: bool) -> None:
    """Flushes all loggers and ends the W&B runs, so that the next job starts a new run."""
    for logger in loggers:
        logger.finalize("failed" if failed else "success")
    for logger in _wandb(loggers):
        logger.experiment.finish(exit_code=int(failed))


def _wandb(loggers: Sequence[Logger]) -> list[WandbLogger]:
    return [logger for logger in loggers if isinstance(logger, WandbLogger)]
