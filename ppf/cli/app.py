"""What all commands share: errors become one sentence, seeds are set, loggers are closed."""

import functools
import sys
from collections.abc import Callable

import hydra
import lightning
from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Fabric
from lightning.fabric.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue

from ppf.cli.launch import check_launch
from ppf.errors import PPFError
from ppf.processes import launch
from ppf.report.loggers import build_loggers, finish
from ppf.stages.signatures import plain

Task = Callable[[DictConfig, Fabric], None]


def command(name: str, *, one_process: bool = False) -> Callable[[Task], Callable[[], None]]:
    """Makes a Hydra application of a function on the resolved config and the started Fabric.

    Args:
        name: of the config.
        one_process: the function does not share its work between processes.
    """

    def decorate(task: Task) -> Callable[[], None]:
        @hydra.main(config_path="pkg://ppf.conf", config_name=name, version_base="1.3")
        @functools.wraps(task)
        def main(cfg: DictConfig) -> None:
            try:
                _check_numbers(cfg)
                _run(task, cfg, one_process)
            except (PPFError, MissingMandatoryValue, InstantiationException) as error:
                sentence = _sentence(error)
                if cfg.debug or sentence is None:
                    raise
                rank = getattr(rank_zero_only, "rank", 0)
                print(f"Error{f' on rank {rank}' if rank else ''}: {sentence}", file=sys.stderr)
                sys.exit(1)

        return main

    return decorate


def _check_numbers(cfg: DictConfig) -> None:
    """Raises PPFError where an override is no number and stands for one.

    Those of `fabric` and `trainer` are for Lightning to judge, which takes words too.
    """
    told = HydraConfig.get()
    keys = {given: given.split("=")[0].lstrip("+~") for given in told.overrides.task}
    choices = [given for given, key in keys.items() if key in told.runtime.choices]
    words = {
        given: key
        for given, key in keys.items()
        if given not in choices
        and not key.startswith(("fabric.", "trainer."))
        and isinstance(OmegaConf.select(cfg, key), str)
    }
    if not words:
        return
    defaults = compose(told.job.config_name, choices)
    for given, key in words.items():
        default = OmegaConf.select(defaults, key)
        if type(default) in (int, float):
            raise PPFError(f"{given}: {key} must be a number, as {default} is.")


def _run(task: Task, cfg: DictConfig, one_process: bool) -> None:
    lightning.seed_everything(cfg.seed, verbose=False)
    check_launch(cfg, one_process=one_process)
    fabric = instantiate(cfg.fabric)
    # Fabric has set the rank by now: only rank 0's loggers write.
    loggers = build_loggers(cfg.logger, cfg.paths.run, plain(cfg))
    fabric.loggers.extend(loggers)
    failed = True
    try:
        launch(fabric)
        task(cfg, fabric)
        failed = False
    finally:
        finish(loggers, failed=failed)


def _sentence(error: Exception) -> str | None:
    """What to tell the user; None: not the user's to mend."""
    if isinstance(error, InstantiationException):
        return str(error.__cause__) if isinstance(error.__cause__, PPFError) else None
    if isinstance(error, MissingMandatoryValue):
        key = str(error).split("full_key: ")[-1].split("\n")[0]
        return f"{key} is missing: give it as {key}=VALUE."
    return str(error)
