"""Loggers for Trainer and Fabric: their start and end, and W&B without prompts."""

import logging
import os
import shutil
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from hydra.utils import instantiate
from lightning.fabric.loggers import Logger
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import Logger as TrainerLogger
from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger

from ppf.conf import run_tags
from ppf.errors import PPFError, reason
from ppf.ranges import Count

_MLFLOW = "MLFLOW_TRACKING_URI"
_STEP = "trainer/global_step"  # WandbLogger sends it with every metric, as the horizontal axis


@contextmanager
def open_loggers(
    cfg: Mapping[str, Any], folder: Path, config: dict[str, Any]
) -> Iterator[list[TrainerLogger]]:
    """The context in which the loggers of a run are open; arguments as for `build_loggers`.

    A run that fails before its first metric keeps no files of theirs.
    """
    before = set(folder.rglob("*"))
    try:
        loggers = build_loggers(cfg, folder, config)
    except Exception:
        _remove(set(folder.rglob("*")) - before)
        raise
    made = set(folder.rglob("*")) - before
    first, failed = _FirstMetric(), True
    try:
        yield [*loggers, first] if loggers else []
        failed = False
    finally:
        finish(loggers, failed=failed)
        if failed and not first.logged:
            _remove(made)


class _FirstMetric(TrainerLogger):
    """Notes whether a run has logged a metric."""

    name = version = None
    logged = False

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        self.logged = True

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The config of a run is no metric."""


@rank_zero_only
def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def build_loggers(
    cfg: Mapping[str, Any], folder: str | Path, config: dict[str, Any]
) -> list[TrainerLogger]:
    """Creates the loggers of the config group `logger`, and logs the config of the run.

    Args:
        cfg: name → `_target_` and its arguments; each logger also gets `save_dir`.
        folder: the run's folder; loggers write below it.
        config: the resolved config as plain dicts and lists.

    Raises:
        PPFError: a logger's package is not installed, or W&B does not start, for example because an
            online run has no API key.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    loggers = list[TrainerLogger]()
    try:
        for node in cfg.values():
            loggers.append(instantiate(node, save_dir=str(folder)))
            loggers[-1].log_hyperparams(config)
    except Exception:
        finish(loggers, failed=True)
        raise
    return loggers


def wandb_logger(
    save_dir: str,
    *,
    mode: Literal["offline", "online", "disabled"],
    init_timeout: Count,
    tags: Sequence[str] | None,
    **arguments: Any,
) -> WandbLogger:
    """A logger with a new W&B run that prints nothing.

    Args:
        save_dir: folder for the run's files.
        mode: "offline", "online" or "disabled".
        init_timeout: seconds to wait for W&B's server.
        tags: of the run; None: the command, and its options of some groups.
        arguments: further arguments of `wandb.init`.

    Raises:
        PPFError: W&B does not start.
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


def tensorboard_logger(save_dir: str, *, folder: str) -> TensorBoardLogger:
    """A logger that writes TensorBoard's files.

    Args:
        save_dir: folder of the run.
        folder: name of the folder for the files, in the folder of the run.

    Raises:
        PPFError: TensorBoard is not installed.
    """
    with _needing("tensorboard"):
        return TensorBoardLogger(save_dir, name="", version=folder, default_hp_metric=False)


def mlflow_logger(
    save_dir: str, *, tracking_uri: str, experiment_name: str, run_name: str | None
) -> MLFlowLogger:
    """A logger with a new MLflow run.

    Args:
        save_dir: folder of the run; not used.
        tracking_uri: address of a server, or a local store such as "sqlite:///outputs/mlflow.db".
            Files of runs in a local store lie in the folder `mlruns` beside it.
        experiment_name: experiment that the run belongs to; created if it is missing.
        run_name: None: MLflow chooses a name.

    Raises:
        PPFError: MLflow is not installed, or its store cannot be reached.
    """
    local = tracking_uri.partition("sqlite:///")[2]
    files = Path(local).parent.resolve().joinpath("mlruns").as_uri() if local else None
    with _needing("mlflow"), warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")  # of the packages below MLflow
        logger = MLFlowLogger(experiment_name, run_name, tracking_uri, artifact_location=files)
        before = os.environ.get(_MLFLOW)
        try:
            _ = logger.run_id
        except Exception as error:  # MLflow passes on those of its stores
            raise PPFError(
                f"MLflow does not start ({reason(error)}): give another logger.mlflow.tracking_uri."
            ) from error
        finally:
            if before is None:  # MLflow sets it, and the next run would take it for the user's
                os.environ.pop(_MLFLOW, None)
    return logger


@contextmanager
def _needing(package: str) -> Iterator[None]:
    """A context that names the extra to install if the package is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise PPFError(
            f"logger={package} needs the package {package}: run"
            f" `pip install 'ppf-llm[{package}]'`, or give another logger."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """A context without log messages below the level of errors, of any package."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


@rank_zero_only
def finish(loggers: Sequence[Logger], *, failed: bool) -> None:
    """Flushes all loggers and ends the W&B runs, so that the next job starts a new run."""
    for logger in loggers:
        logger.finalize("failed" if failed else "success")
        if isinstance(logger, WandbLogger):
            logger.experiment.finish(exit_code=int(failed))
