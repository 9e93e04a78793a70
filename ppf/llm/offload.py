"""Decoder layers whose weights lie in host memory or on disk, and on the device while they run."""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ppf.artefacts import writing

Place = Literal["cpu", "disk"]


class Offloaded:
    """Keeps the weights of some layers off the device, except while a layer runs.

    On disk, they lie in nameless files that the system reads when a weight is used and drops when
    memory is short; the space is free again when the process ends. In host memory they are pinned,
    so that copies to a GPU are fast. On a CPU, which is host memory, "cpu" changes nothing.

    Args:
        layers: the layers; all their weights are on the CPU.
        place: where their weights lie.
        device: that the layers run on.
        folder: of the files on disk.
        dtype: of the weights on disk; they are converted one layer at a time.

    Raises:
        PPFError: the files cannot be written.
    """

    def __init__(
        self,
        layers: nn.ModuleList,
        place: Place,
        device: torch.device,
        folder: Path,
        dtype: torch.dtype,
    ) -> None:
        self._device = device
        self._files: dict[nn.Module, mmap.mmap] = {}
        self._inside: set[nn.Module] = set()
        for layer in layers:
            if place == "disk":
                self._files[layer] = _to_disk(layer, folder, dtype)
            elif device.type == "cuda":
                for parameter in layer.parameters():
                    parameter.data = parameter.data.pin_memory()
            layer.forward = partial(self._run, layer, layer.forward)
            self._release(layer)

    @contextmanager
    def resident(self, layer: nn.Module) -> Iterator[None]:
        """A context in which a layer's weights are on the device."""
        if layer in self._inside:
            yield
            return
        home = {parameter: parameter.data for parameter in layer.parameters()}
        self._inside.add(layer)
        try:
            for parameter, data in home.items():
                parameter.data = self._bring(data)
            yield
        finally:
            self._inside.remove(layer)
            for parameter, data in home.items():
                parameter.data = data
            self._release(layer)

    def _bring(self, weight: Tensor) -> Tensor:
        return weight.to(self._device, non_blocking=True)

    def _run(self, layer: nn.Module, forward: Any, *inputs: Any, **named: Any) -> Any:
        with self.resident(layer):
            return forward(*inputs, **named)

    def _release(self, layer: nn.Module) -> None:
        """Frees the memory of a layer's file; what was written to it stays in the file."""
        if layer in self._files and hasattr(mmap, "MADV_DONTNEED"):
            self._files[layer].madvise(mmap.MADV_DONTNEED)


def _to_disk(layer: nn.Module, folder: Path, dtype: torch.dtype) -> mmap.mmap:
    """Moves a layer's weights to a mapped file without a name."""
    parameters = [parameter for parameter in layer.parameters() if parameter.numel()]
    # Each parameter begins at a multiple of 64 bytes.
    sizes = [-(-parameter.numel() * dtype.itemsize // 64) * 64 for parameter in parameters]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            # A hole in the file would end the process when the disk is full.
            size = sum(sizes)
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, size)
            else:  # macOS
                file.truncate(size)
            mapped = mmap.mmap(file.fileno(), 0)
    start = 0
    for parameter, size in zip(parameters, sizes, strict=True):
        view: Tensor = torch.frombuffer(
            mapped, dtype=dtype, count=parameter.numel(), offset=start
        ).view(parameter.shape)
        parameter.data = view.copy_(parameter.data)
        start += size
    return mapped
