"""Checks, before the work starts, that the number of processes fits the config."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from lightning.fabric.plugins.environments import (
    LSFEnvironment,
    MPIEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from ppf.cli.outcome import is_multirun
from ppf.conf import plain
from ppf.errors import PPFError
from ppf.processes import kind_of_device, process_count, slurm_tasks

_STRATEGIES = ("auto", "ddp")
_FABRIC_RUN = ("ACCELERATOR", "CLI_USED", "DEVICES", "NUM_NODES", "PRECISION", "STRATEGY")


class _Started(NamedTuple):
    """Processes that torchrun, `fabric run` or Slurm started.

    Args:
        option: the command with its option for the number of processes per node.
        each: processes per node.
    """

    launcher: str
    option: str
    processes: int
    nodes: int
    each: int


def check_launch(cfg: DictConfig, *, one_process: bool) -> None:
    """Checks the processes that `cfg` asks for.

    Args:
        one_process: the command does not share its work between processes.

    Raises:
        PPFError: the strategy is not supported, the devices do not exist here, a launcher started
            another number of processes, several would be used where one is enough, a multirun would
            start several, or nothing starts those of other machines.
    """
    if cfg.fabric.strategy not in _STRATEGIES:
        raise PPFError(
            f"fabric.strategy={cfg.fabric.strategy} is not supported: give"
            f" {' or '.join(_STRATEGIES)}; each process holds the whole model."
        )
    started = _started()
    _take_fabric_run(cfg.fabric)
    _choose_devices(cfg)
    count = _count("fabric", plain(cfg.fabric))
    if not cfg.get("plan"):  # which starts no processes
        _check_processes(cfg, started, count, one_process)
    if "devices" in cfg.get("trainer", {}) and _count("trainer", plain(cfg.trainer)) > 1:
        raise PPFError(
            "the predictor is too small to gain from several devices: give trainer.devices=1"
            " (fabric.devices divides labelling and search)."
        )


def _choose_devices(cfg: DictConfig) -> None:
    """Replaces accelerator=auto by the kind of device that is used."""
    for group in ("fabric", "trainer"):
        if "accelerator" in cfg.get(group, {}):
            cfg[group].accelerator = kind_of_device(cfg[group].accelerator)
            if cfg[group].accelerator == "mps":
                raise PPFError(f"{group}.accelerator=mps has no float64: give {group}=cpu.")


def _check_processes(
    cfg: DictConfig, started: _Started | None, count: int, one_process: bool
) -> None:
    """Raises PPFError if there are not the `count` processes that the config says."""
    if one_process and (count > 1 or started and started.processes > 1):
        raise PPFError("this command uses one process: give fabric.devices=1 and start it once.")
    most = max(count, started.processes if started else 1)
    by_submitit = started and os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
    if most > 1 and is_multirun() and not by_submitit:
        # Lightning starts processes by repeating the command, which would be the whole multirun.
        raise PPFError(
            f"a multirun cannot start {most} processes a job here: run its jobs one by one,"
            " without -m, or on a cluster with hydra/launcher=submitit_slurm."
        )
    if started and most > 1:
        _check_launcher(started, cfg, count)
    elif started is None and slurm_tasks() > 1:
        raise PPFError(
            "in an interactive job, Lightning does not see Slurm's tasks: run"
            " `export SLURM_JOB_NAME=ppf` before srun."
        )
    elif cfg.fabric.num_nodes > 1 and not _may_meet():
        nodes, each = cfg.fabric.num_nodes, count // cfg.fabric.num_nodes
        raise PPFError(
            f"fabric.num_nodes={nodes} needs a launcher: start the command on each machine with"
            f" torchrun --nnodes={nodes} --nproc_per_node={each}, or once with"
            f" srun --nodes={nodes} --ntasks-per-node={each}."
        )


def _count(group: str, arguments: Mapping[str, Any]) -> int:
    try:
        return process_count(arguments)
    except (ImportError, RuntimeError, TypeError, ValueError, MisconfigurationException) as error:
        cause = str(error).split("\n")[0].rstrip(".!")
        given = [f"{group}.{name}={arguments[name]}" for name in ("accelerator", "devices")]
        raise PPFError(
            f"{' '.join(given)} cannot be used here ({cause}): give other values, or {group}=cpu."
        ) from error


def _check_launcher(found: _Started, cfg: DictConfig, count: int) -> None:
    """Raises PPFError if a launcher started another number of processes than the config says."""
    nodes, processes = cfg.fabric.num_nodes, "process" if found.processes == 1 else "processes"
    if (found.processes, found.nodes, found.each) != (count, nodes, count // nodes):
        raise PPFError(
            f"{found.launcher} started {found.processes} {processes} ({found.each} a node), but"
            f" fabric.devices={cfg.fabric.devices} and fabric.num_nodes={nodes} need {count}: give"
            f" fabric.devices={found.each} fabric.num_nodes={found.nodes}, or start the command"
            f" with {found.option}={count // nodes}."
        )


def _take_fabric_run(fabric: DictConfig) -> None:
    """Removes the options of `fabric run` from the environment: the config alone counts.

    Fabric would compare them with the arguments of the Trainer too.

    Raises:
        PPFError: an option differs from the config.
    """
    for name in ("accelerator", "precision", "strategy"):
        own = str(fabric[name])
        if (option := os.environ.get(f"LT_{name.upper()}", own)) != own:
            raise PPFError(
                f"fabric run has --{name}={option}, but fabric.{name}={own}: give"
                f" fabric.{name}={option}, or leave --{name} out."
            )
    for name in _FABRIC_RUN:
        os.environ.pop(f"LT_{name}", None)


def _may_meet() -> bool:
    """Whether this process can find those of other machines without torchrun and Slurm."""
    return "MASTER_PORT" in os.environ or LSFEnvironment.detect() or MPIEnvironment.detect()


def _started() -> _Started | None:
    """The processes of the launcher that started this one, if there is one."""
    environment = os.environ
    if TorchElasticEnvironment.detect():
        total, each = int(environment["WORLD_SIZE"]), int(environment["LOCAL_WORLD_SIZE"])
        if "LT_CLI_USED" in environment:
            return _Started("fabric run", "fabric run --devices", total, total // each, each)
        return _Started("torchrun", "torchrun --nproc_per_node", total, total // each, each)
    if SLURMEnvironment.detect():
        option, total = "srun --ntasks-per-node", int(environment["SLURM_NTASKS"])
        nodes = min(int(environment.get("SLURM_NNODES", 1)), total)  # the rest of them runs nothing
        # Lightning insists on this variable, which `srun --ntasks` leaves out.
        each = int(environment.setdefault("SLURM_NTASKS_PER_NODE", str(total // nodes)))
        # Only srun sets this one; the script of sbatch is one process for all tasks of its job.
        if int(environment.get("SLURM_STEP_NUM_TASKS", 1)) < total:
            return _Started("Slurm", option, 1, 1, 1)
        return _Started("Slurm", option, total, nodes, each)
    return None
