"""Fast training on a CPU: number format and memory."""

import ctypes
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch.func import functional_call
from transformers import PreTrainedModel

from ppf.llm import fast_attention

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # glibc's malloc.h
_KEEPING = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**28}
# The thresholds that glibc reaches by itself in a process that has freed large tensors.
_USUAL = {_MMAP_MAX: 2**16, _MMAP_THRESHOLD: 2**25, _TRIM_THRESHOLD: 2**26, _TOP_PAD: 2**17}


def call_rounded(module: PreTrainedModel, *given: Any, **named: Any) -> Any:
    """Calls a module; under autocast on a CPU, with copies of its parameters in autocast's dtype.

    Gradients reach the parameters through the copies. Autocast alone would keep the residual
    stream in float32 and convert it in front of each projection, which is slow on a CPU.
    """
    device = module.device.type
    if device != "cpu" or not torch.is_autocast_enabled(device):
        return module(*given, **named)
    dtype = torch.get_autocast_dtype(device)
    copies = {name: parameter.to(dtype) for name, parameter in module.named_parameters()}
    with torch.autocast(device, enabled=False), fast_attention(module, dtype):
        return functional_call(module, copies, given, named)


@contextmanager
def reusing_memory() -> Iterator[None]:
    """Keeps memory that is freed inside the context, if the C library is glibc.

    Each training step allocates the same large tensors. To get their memory from the kernel each
    time took a fifth of a step on a CPU.
    """
    _set_malloc(_KEEPING)
    try:
        yield
    finally:
        _set_malloc(_USUAL)


def _set_malloc(options: Mapping[int, int]) -> None:
    """Sets options of glibc's malloc, and gives back memory that they do not let it keep."""
    with suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        for option, value in options.items():
            libc.mallopt(option, value)
        libc.malloc_trim(options[_TOP_PAD])
