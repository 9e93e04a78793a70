"""How much memory running a model takes."""

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

_PROCESS = Path("/proc/self")
_RESET_PEAK = "5"  # proc(5), /proc/pid/clear_refs


@dataclass
class Peak:
    """Filled when its block is left; None where the system does not tell."""

    bytes: int | None = None


@contextmanager
def peak_bytes(model: nn.Module) -> Iterator[Peak]:
    """The model's weights, and the most memory that the block takes on top of them.

    Read from CUDA's allocator for a model there, from Linux's resident set for one on the CPU.
    Weights count as wide as the model is: a live-pruned model's dense storage is left out.
    """
    peak = Peak()
    device = next(model.parameters()).device
    weights = sum(parameter.nbytes for parameter in model.parameters())
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield peak
        peak.bytes = weights + torch.cuda.max_memory_allocated(device) - before
    elif (_PROCESS / "clear_refs").exists():
        _give_back_freed()
        (_PROCESS / "clear_refs").write_text(_RESET_PEAK)
        before = _resident("VmRSS")
        yield peak
        peak.bytes = weights + max(_resident("VmHWM") - before, 0)
    else:
        yield peak


def _give_back_freed() -> None:
    """What glibc holds in reserve would hide what the block takes."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def _resident(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", (_PROCESS / "status").read_text())
    assert found
    return 1024 * int(found[1])
