"""What this machine has: its speed and its free memory."""

import math
from collections.abc import Callable
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from omegaconf import DictConfig
from torch.utils.benchmark import Timer

from ppf.llm.loading import resolve_dtype
from ppf.llm.shapes import skeleton

_TIMED = 0.2  # seconds of each timing


class Speed(NamedTuple):
    """Seconds of a token in a decoder layer, and of an operation of a large float32 product."""

    layer: float
    product: float

    @classmethod
    @torch.inference_mode()
    def measured(cls, cfg: DictConfig, device: torch.device) -> "Speed":
        """The speed at this moment; takes some seconds, and the memory of a model of one layer."""
        model, adapter = skeleton(cfg.model)
        del adapter.layers(model)[1:]
        model.config.get_text_config().num_hidden_layers = 1
        decoder = model.base_model.to(resolve_dtype(cfg.model.dtype, device))
        decoder.to_empty(device=device)
        for tensor in chain(adapter.layers(model).parameters(), decoder.buffers()):
            tensor.fill_(0.01)
        ids = torch.zeros(1, int(cfg.text.window), dtype=torch.long, device=device)
        layer = _seconds(lambda: decoder(ids, use_cache=False)) / ids.numel()
        side = 1024 if device.type == "cpu" else 8192
        square = torch.ones(side, side, device=device)
        return cls(layer, _seconds(lambda: square @ square) / (2 * side**3))


def _seconds(run: Callable[[], Any]) -> float:
    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    return min(timer.blocked_autorange(min_run_time=_TIMED).times)


def free_memory(device: torch.device) -> float:
    """Bytes that are free in a device's memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(psutil.virtual_memory().available, left_by_groups())


def left_by_groups(
    membership: Path = Path("/proc/self/cgroup"), top: Path = Path("/sys/fs/cgroup")
) -> float:
    """Bytes that the Linux control groups of this process, as of a Slurm job, leave it.

    Args:
        membership: the file that names its group. Groups above it may have lower limits.
        top: folder of all groups.
    """
    left = [math.inf]
    with suppress(OSError):
        name = membership.read_text(encoding="utf-8").rpartition("::/")[2].strip()
        for group in (top / name, *(top / name).parents):
            with suppress(OSError, ValueError):  # no such group here, or no limit ("max")
                limit, used = (int((group / f"memory.{x}").read_text()) for x in ("max", "current"))
                stat = (group / "memory.stat").read_text()
                cache = dict(line.split() for line in stat.splitlines())["inactive_file"]
                left.append(limit - used + int(cache))  # page cache not used lately is free
    return max(min(left), 0)
