"""What this machine has: its speed and its free memory."""

import math
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, cast

import psutil
import torch
from omegaconf import DictConfig
from torch import nn
from torch.utils.benchmark import Timer

from ppf.llm import LanguageModel
from ppf.llm.calls import LayerCalls
from ppf.llm.loading import resolve_dtype
from ppf.llm.shapes import skeleton

_TIMED = 0.5  # seconds of each timing


class Speed(NamedTuple):
    """Seconds of some work on this machine.

    Args:
        layer: of a decoder layer, for one token.
        single, double: of one operation of a large product, in float32 and in float64.
    """

    layer: float
    single: float
    double: float

    @classmethod
    @torch.inference_mode()
    def measured(cls, cfg: DictConfig, device: torch.device) -> "Speed":
        """The speed at this moment; takes some seconds, and the memory of one decoder layer."""
        model, adapter = skeleton(cfg.model)
        layers, module = adapter.layers(model), cast(nn.Module, model)
        del layers[1:]
        module.to(resolve_dtype(cfg.model.dtype, device)).to_empty(device=device)
        for tensor in chain(layers.parameters(), model.buffers()):
            tensor.fill_(0.01)
        ids = torch.zeros(1, int(cfg.text.window), dtype=torch.long, device=device)
        call = LayerCalls.record(LanguageModel(model, cast(Any, None), adapter), ids)
        layer = _seconds(lambda: layers[0](call.inputs, **call.keywords[0]))
        side = 1024 if device.type == "cpu" else 8192
        square = torch.ones(side, side, device=device)
        single, double = (
            _seconds(partial(torch.matmul, factor, factor)) / (2 * side**3)
            for factor in (square, square.double())
        )
        return cls(layer / ids.numel(), single, double)


def free_memory(device: torch.device) -> float:
    """Bytes that are free in a device's memory."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(psutil.virtual_memory().available, left_by_groups())


def left_by_groups(
    membership: Path = Path("/proc/self/cgroup"), top: Path = Path("/sys/fs/cgroup")
) -> float:
    """Bytes that this process's Linux control group, as of a container or Slurm job, may take.

    The groups above it may have lower limits. Page cache that was not used lately counts as free.

    Args:
        membership: the file that names the group.
        top: folder of all groups.
    """
    left = [math.inf]
    with suppress(OSError):
        name = membership.read_text(encoding="utf-8").rpartition("::/")[2].strip()
        for group in (top / name, *(top / name).parents):
            with suppress(OSError, ValueError):  # no such group here, or no limit ("max")
                limit, used, stat = (
                    (group / f"memory.{key}").read_text(encoding="utf-8")
                    for key in ("max", "current", "stat")
                )
                cache = dict(line.split() for line in stat.splitlines())["inactive_file"]
                left.append(int(limit) - int(used) + int(cache))
    return max(min(left), 0)


def _seconds(run: Callable[[], Any]) -> float:
    timer = Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
    return min(timer.blocked_autorange(min_run_time=_TIMED).times)
