"""The loggers of a run: Lightning's own, from the config group `logger`."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only


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
            loggers.append(instantiate(node, save_dir=str(folder), _convert_="all"))
            if isinstance(loggers[-1], WandbLogger):
                import wandb

                # It prints nothing, and without a key it raises an error instead of asking for one.
                wandb.setup(wandb.Settings(silent=True, console="off"))
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
