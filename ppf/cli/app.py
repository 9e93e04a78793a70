"""What all commands share: errors become one sentence, seeds are set, loggers are closed."""

import functools
import os
from collections.abc import Callable

import hydra
import lightning
from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig

from ppf.cli.checks import check
from ppf.cli.explain import explain_config, explain_run, told
from ppf.cli.launch import check_launch
from ppf.processes import launch
from ppf.report.loggers import build_loggers, finish
from ppf.stages.signatures import plain

Task = Callable[[DictConfig, Fabric], None]
Check = Callable[[DictConfig], None]
"""Raises PPFError for a config that cannot work."""


def command(
    name: str, check_relations: Check | None = None, *, one_process: bool = False
) -> Callable[[Task], Callable[[], None]]:
    """Makes a Hydra application of a function on the resolved config and the started Fabric.

    Args:
        name: of the config.
        check_relations: checks keys against each other, once each is known to be right.
        one_process: the function does not share its work between processes.
    """

    def decorate(task: Task) -> Callable[[], None]:
        @hydra.main(config_path="pkg://ppf.conf", config_name=name, version_base="1.3")
        @functools.wraps(task)
        def job(cfg: DictConfig) -> None:
            with told(explain_run):
                check(name, cfg)
                if check_relations:
                    check_relations(cfg)
                _run(task, cfg, one_process)

        def main() -> None:
            os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors and prints none
            with told(explain_config(name)):
                job()

        return main

    return decorate


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
