"""Peak memory of a running model."""

import ctypes
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

_PROCESS = Path("/proc/self")
_RESET_PEAK = "5"  # resets the peak of the resident set: proc(5), /proc/pid/clear_refs


@dataclass
class Peak:
    """Peak memory in bytes, set at the end of a `peak_bytes` block; None: it is not reported."""

    bytes: int | None = None


@contextmanager
def peak_bytes(model: nn.Module) -> Iterator[Peak]:
    """Measures the weights of a model plus the largest memory that the block allocates.

    On a GPU, PyTorch's allocator reports the memory; on a CPU, Linux's resident set does. The
    weights of a live-pruned model count with their pruned size, although their dense storage stays.
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
        _release_freed()
        (_PROCESS / "clear_refs").write_text(_RESET_PEAK)
        before = _resident("VmRSS")
        yield peak
        peak.bytes = weights + max(_resident("VmHWM") - before, 0)
    else:
        yield peak


def _release_freed() -> None:
    """Returns freed memory to the system: glibc would reuse it, and the peak would be too low."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


def _resident(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", (_PROCESS / "status").read_text())
    assert found
    return 1024 * int(found[1])
