"""Refuses processes that would do the same work twice, or wait for others for ever."""

import os

from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from omegaconf import DictConfig

from ppf.cli.outcome import is_multirun
from ppf.errors import PPFError
from ppf.processes import process_count, slurm_tasks


def check_processes(cfg: DictConfig, *, one_process: bool) -> None:
    """Compares the processes that the config asks for with those that torchrun or srun started.

    Lightning's Fabric refuses devices that do not exist here.

    Args:
        one_process: the command does not share its work between processes.

    Raises:
        PPFError: their numbers differ, or a job would start several where one is expected.
    """
    count, started = process_count(cfg.fabric), slurm_tasks()
    elsewhere = cfg.fabric.num_nodes > 1 and "MASTER_PORT" not in os.environ
    launched = started > 1 or elsewhere or SLURMEnvironment.detect()
    if TorchElasticEnvironment.detect():
        launched, started = True, int(os.environ["WORLD_SIZE"])
    most = max(count, started)
    if one_process and most > 1:
        raise PPFError("this command uses one process: give fabric.devices=1 and start it once.")
    if most > 1 and is_multirun() and os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
        # Lightning starts processes by repeating the command, which would be the whole multirun.
        raise PPFError(
            f"a multirun cannot start {most} processes a job here: run its jobs one by one,"
            " without -m, or on a cluster with hydra/launcher=submitit_slurm."
        )
    if launched and count != started:
        raise PPFError(
            f"fabric.devices x fabric.num_nodes are {count} processes, but {started} started: give"
            " other numbers, or start all of them with torchrun or srun."
        )
