"""Checks, before the work starts, that the number of processes fits the config."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from lightning.fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from ppf.cli.outcome import is_multirun
from ppf.context.signatures import plain
from ppf.errors import PPFError
from ppf.processes import process_count


class _Started(NamedTuple):
    """Processes that torchrun or Slurm started.

    Args:
        option: of the launcher: processes per node.
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
        PPFError: the devices do not exist here, a launcher started another number of processes,
            several would be used where one is enough, or a multirun would start several.
    """
    count, started = _count("fabric", plain(cfg.fabric)), _started()
    if one_process and (count > 1 or started and started.processes > 1):
        raise PPFError("this command uses one process: give fabric.devices=1 and start it once.")
    if started and max(started.processes, count) > 1:
        _check_launcher(started, cfg, count)
    elif count > 1 and is_multirun():
        # Lightning starts processes by repeating the command, which would be the whole multirun.
        raise PPFError(
            f"a multirun cannot start {count} processes a job here: run its jobs one by one,"
            " without -m, or on a cluster with hydra/launcher=submitit_slurm."
        )
    if "devices" in cfg.get("trainer", {}) and _count("trainer", plain(cfg.trainer)) > 1:
        raise PPFError(
            "the predictor is too small to gain from several devices: give trainer.devices=1"
            " (fabric.devices divides labelling and search)."
        )


def _count(group: str, arguments: Mapping[str, Any]) -> int:
    try:
        return process_count(arguments)
    except (ImportError, RuntimeError, TypeError, ValueError, MisconfigurationException) as error:
        cause = str(error).split("\n")[0]
        given = [f"{group}.{name}={arguments[name]}" for name in ("accelerator", "devices")]
        raise PPFError(
            f"{' '.join(given)} cannot be used here ({cause.rstrip('.')}): give others, as in"
            f" {group}.accelerator=cpu {group}.devices=1."
        ) from error


def _check_launcher(found: _Started, cfg: DictConfig, count: int) -> None:
    """Raises PPFError if a launcher started another number of processes than the config says."""
    nodes = cfg.fabric.num_nodes
    if (found.processes, found.nodes, found.each) != (count, nodes, count // nodes):
        raise PPFError(
            f"{found.launcher} started {found.processes} processes ({found.each} a node), but"
            f" fabric.devices={cfg.fabric.devices} and fabric.num_nodes={nodes} need {count}: give"
            f" fabric.devices={found.each} fabric.num_nodes={found.nodes}, or start the command"
            f" with {found.option}={count // nodes}."
        )


def _started() -> _Started | None:
    """The processes of the launcher that started this one, if there is one."""
    told = os.environ
    if TorchElasticEnvironment.detect():
        total, each = int(told["WORLD_SIZE"]), int(told["LOCAL_WORLD_SIZE"])
        return _Started("torchrun", "--nproc_per_node", total, total // each, each)
    if SLURMEnvironment.detect():
        total = int(told["SLURM_NTASKS"])
        nodes = min(int(told.get("SLURM_NNODES", 1)), total)  # the rest of them runs nothing
        # Lightning insists on this variable, which `srun --ntasks` leaves out.
        each = int(told.setdefault("SLURM_NTASKS_PER_NODE", str(total // nodes)))
        return _Started("Slurm", "--ntasks-per-node", total, nodes, each)
    return None
