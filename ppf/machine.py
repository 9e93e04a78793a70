"""What this machine has: free memory and disk, and its speed at this moment."""

import math
import shutil
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
from ppf.pruning.signatures import signatures

GIB = 2**30
_TIMED = 0.2  # seconds of each timing


class Speed(NamedTuple):
    """Seconds of a token in a decoder layer, and of an operation of a large float32 product."""

    layer: float
    product: float

    @classmethod
    @torch.inference_mode()
    def measured(cls, cfg: DictConfig, device: torch.device) -> "Speed":
        """The speed at this moment; takes a second, and the memory of a model of one layer."""
        model, adapter = skeleton(cfg.model)
        del adapter.layers(model)[1:]
        model.config.get_text_config().num_hidden_layers = 1
        decoder = model.base_model.to(resolve_dtype(cfg.model.dtype, device))
        decoder.to_empty(device=device)
        for tensor in chain(adapter.layers(model).parameters(), decoder.buffers()):
            tensor.fill_(0.01)
        ids = torch.zeros(1, int(cfg.text.window), dtype=torch.long, device=device)
        square = torch.ones([1024 if device.type == "cpu" else 8192] * 2, device=device)
        layer = _seconds("decoder(ids, use_cache=False)", decoder=decoder, ids=ids)
        return cls(layer / ids.numel(), _seconds("x @ x", x=square) / (2 * len(square) ** 3))


def free_gib(cfg: DictConfig, device: torch.device) -> tuple[float, float]:
    """GiB of free memory and disk; statistics and banks that this config has made count as free."""
    on_cpu, artefacts = device.type == "cpu", Path(cfg.paths.artefacts)
    system = psutil.virtual_memory().available
    memory = min(system, left_by_groups()) if on_cpu else torch.cuda.mem_get_info(device)[0]
    there = next(x for x in (artefacts, *artefacts.absolute().parents) if x.exists())
    disk = shutil.disk_usage(there).free
    if (artefacts / "statistics").is_dir():  # signatures may have to read the model's files
        names = signatures(cfg, device)
        patterns = f"statistics/{names.statistics}*/*", f"bank/{names.bank}/*/*"
        disk += sum(file.stat().st_size for x in patterns for file in artefacts.glob(x))
    return memory / GIB, disk / GIB


def left_by_groups(membership: str = "/proc/self/cgroup", top: str = "/sys/fs/cgroup") -> float:
    """Bytes that the Linux control groups of this process, as of a Slurm job, leave it.

    Args:
        membership: the file that names its group. Groups above it may have lower limits.
        top: folder of all groups.
    """
    left = [math.inf]
    with suppress(OSError):
        name = Path(membership).read_text(encoding="utf-8").rpartition("::/")[2].strip()
        for group in (Path(top, name), *Path(top, name).parents):
            with suppress(OSError, ValueError):  # no such group here, or no limit ("max")
                limit, used = (int((group / f"memory.{x}").read_text()) for x in ("max", "current"))
                stat = (group / "memory.stat").read_text()
                cache = dict(line.split() for line in stat.splitlines())["inactive_file"]
                left.append(limit - used + int(cache))  # page cache not used lately is free
    return max(min(left), 0)


def _seconds(code: str, **given: Any) -> float:
    timer = Timer(code, globals=given, num_threads=torch.get_num_threads())
    return min(timer.blocked_autorange(min_run_time=_TIMED).times)
