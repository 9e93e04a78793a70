"""Loggers for Trainer and Fabric: their start and end, and W&B without prompts."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from ppf.conf import run_tags
from ppf.errors import PPFError
from ppf.ranges import Count

_STEP = "trainer/global_step"  # WandbLogger sends it with every metric, as the horizontal axis


@contextmanager
def open_loggers(
    cfg: Mapping[str, Any], folder: Path, config: dict[str, Any]
) -> Iterator[list[Logger]]:
    """The context in which the loggers of a run are open.

    At its end they are flushed, and the W&B runs end, so that the next job starts a new run.

    Args:
        cfg: the config group `logger`: name → `_target_` and its arguments; each logger also gets
            `save_dir`.
        folder: of the run; loggers write below it.
        config: of the run, as plain dicts and lists, which is logged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    loggers, failed = list[Logger](), True
    try:
        for node in cfg.values():
            loggers.append(instantiate(node, save_dir=str(folder)))
            loggers[-1].log_hyperparams(config)
        yield loggers
        failed = False
    finally:
        _finish(loggers, failed=failed)


@rank_zero_only
def _finish(loggers: Sequence[Logger], *, failed: bool) -> None:
    for logger in loggers:
        logger.finalize("failed" if failed else "success")
        if isinstance(logger, WandbLogger):
            logger.experiment.finish(exit_code=int(failed))


def wandb_logger(
    save_dir: str,
    *,
    mode: Literal["offline", "online", "disabled"],
    init_timeout: Count,
    tags: Sequence[str] | None,
    **arguments: Any,
) -> WandbLogger:
    """A logger with a new W&B run that prints nothing and never asks for a key.

    Args:
        save_dir: folder for the run's files.
        mode: "offline", "online" or "disabled".
        init_timeout: seconds to wait for W&B's server.
        tags: of the run; None: the command, and its options of some groups.
        arguments: further arguments of `wandb.init`.

    Raises:
        PPFError: W&B does not start, for example because an online run has no API key.
    """
    arguments |= {"dir": save_dir, "mode": mode, "tags": run_tags() if tags is None else tags}
    run = _start(init_timeout, arguments)
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
