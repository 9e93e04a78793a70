"""Several processes of one run (ranks): how they start and end."""

import os
import time
from collections.abc import Mapping
from datetime import timedelta
from threading import Thread
from typing import Any

import torch
from lightning import Fabric
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.strategies import DDPStrategy
from omegaconf import DictConfig

from ppf.conf import plain
from ppf.progress import console
from ppf.ranges import Count

_WATCH_EVERY = 5.0  # seconds
_PATIENCE = timedelta(hours=48)  # rank 0 makes most artefacts alone, which takes hours
_DEVICES = ("accelerator", "devices", "num_nodes", "strategy")


def build_fabric(*, accelerator: str, devices: int | str, num_nodes: Count) -> Fabric:
    """Lightning's Fabric, whose ranks wait longer for each other than the default of 30 minutes.

    Args:
        accelerator: type of device.
        devices: processes on each machine.
        num_nodes: number of machines.
    """
    placed: dict[str, Any] = {"accelerator": kind_of_device(accelerator), "devices": devices}
    placed["num_nodes"] = num_nodes
    if process_count(placed) == 1:  # even under a launcher, whose environment does not count
        return Fabric(**placed, plugins=LightningEnvironment())
    return Fabric(**placed, strategy=DDPStrategy(timeout=_PATIENCE))


def kind_of_device(accelerator: str) -> str:
    """What auto stands for: a CUDA device if there is one, else the CPU.

    Lightning would also choose Apple's MPS, which has no float64.
    """
    if accelerator != "auto":
        return accelerator
    return "cuda" if torch.cuda.is_available() else "cpu"


def process_count(arguments: Mapping[str, Any]) -> int:
    """How many processes Lightning would use.

    Args:
        arguments: of Fabric or Trainer; only those on devices and nodes count.
    """
    asked = {name: arguments[name] for name in _DEVICES if name in arguments}
    for name in [name for name in os.environ if name.startswith("LT_")]:
        del os.environ[name]  # options of `fabric run`: the config alone counts
    return Fabric(**asked, plugins=LightningEnvironment()).world_size


def processes_here(fabric: Fabric) -> int:
    """How many processes of the run there are on each machine."""
    return fabric.world_size // getattr(fabric.strategy, "num_nodes", 1)


def is_alone() -> bool:
    """Whether this process shares its run with no others, which would wait for it."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    ranks = torch.distributed.get_world_size() if distributed else 1
    return ranks == slurm_tasks() == 1


def slurm_tasks() -> int:
    """Number of tasks that srun has started with this one; 1 inside a shell that it has started."""
    in_shell = "SLURM_PTY_PORT" in os.environ
    return 1 if in_shell else int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))


def launch(fabric: Fabric) -> None:
    """Starts the ranks: only rank 0 prints, and the others end when their parent process does."""
    if fabric.local_rank > 0:
        Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    fabric.launch()
    console.quiet = not fabric.is_global_zero


def _end_with(parent: int) -> None:
    """Ends this process once its parent has ended; otherwise it would go on without purpose."""
    while os.getppid() == parent:
        time.sleep(_WATCH_EVERY)
    os._exit(1)  # an exception would not reach the main thread while it waits for other ranks


def trainer_identity(trainer: DictConfig) -> dict[str, Any]:
    """The arguments of Lightning's Trainer that determine what is trained, not where."""
    where = (*_DEVICES, "log_every_n_steps", "num_sanity_val_steps")
    return {key: value for key, value in plain(trainer).items() if key not in where}
