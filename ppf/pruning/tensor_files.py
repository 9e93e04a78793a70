"""Tensors in safetensors files that carry a checksum; artefacts with one file for each layer."""

import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ppf.artefacts import get_or_make

T = TypeVar("T")
Make = Callable[[int], dict[str, Tensor]]
"""Makes the tensors of a layer."""
_CHECKSUM = "crc32"


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes a safetensors file that carries a checksum of its tensors."""
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    save_file(tensors, path, {_CHECKSUM: _checksum(sorted(tensors.items()))})


def open_tensors(path: Path) -> safe_open:
    """Opens a file that `write_tensors` wrote; its tensors stay on disk until they are read.

    Raises:
        ValueError: the tensors do not have the checksum that the file carries.
    """
    file = safe_open(path, "pt")
    checksum = (file.metadata() or {}).get(_CHECKSUM)
    named = ((name, file.get_tensor(name)) for name in sorted(file.keys()))
    if checksum != _checksum(named):
        raise ValueError("its checksum is wrong")
    return file


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file that `write_tensors` wrote.

    Raises:
        ValueError: the tensors do not have the checksum that the file carries.
    """
    file = open_tensors(path)
    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _checksum(named: Iterable[tuple[str, Tensor]]) -> str:
    """CRC-32 of all names and values."""
    found = 0
    for name, tensor in named:
        content = tensor.reshape(-1).view(torch.uint8).numpy().data
        found = zlib.crc32(content, zlib.crc32(name.encode(), found))
    return f"{found:08x}"


class LayerFiles:
    """An artefact with one file for each decoder layer.

    Each file is complete before the next layer starts, so a killed run resumes there. Several
    processes may make different layers at once.

    Args:
        folder: of the files.
        make: makes the tensors of a layer whose file is missing or damaged.
    """

    def __init__(self, folder: Path, make: Make) -> None:
        self._folder, self._make = folder, make
        self._last: tuple[int, dict[str, Tensor]] | None = None

    def missing(self, layers: Iterable[int]) -> bool:
        """Whether a layer has no file yet."""
        return not all(self._path(layer).exists() for layer in layers)

    def ensure(self, layer: int) -> None:
        """Makes a layer's file if it is missing; waits while another process makes it."""
        self._get(layer, lambda path: path)

    def read(self, layer: int) -> dict[str, Tensor]:
        """The tensors of a layer, made if they are missing or damaged.

        The last layer is kept in memory.
        """
        last = self._last
        if last is None or last[0] != layer:
            last = self._last = None  # two layers need not be in memory at once
            last = self._last = layer, self._get(layer, read_tensors)
        return last[1]

    def _get(self, layer: int, read: Callable[[Path], T]) -> T:
        def write(draft: Path) -> None:
            write_tensors(draft, self._make(layer))

        return get_or_make(self._path(layer), read=read, make=write)

    def _path(self, layer: int) -> Path:
        return self._folder / f"{layer:04}.safetensors"


class StoredTensors(Sequence[Tensor]):
    """One tensor of each coupling, read from a layer's file when it is used.

    Args:
        files: the files.
        layers: the layer of each coupling.
        name: of coupling I's tensor, as in "gram.{}".
    """

    def __init__(self, files: LayerFiles, layers: Sequence[int], name: str) -> None:
        self._files, self._layers, self._name = files, layers, name

    def __len__(self) -> int:
        return len(self._layers)

    def __getitem__(self, index: Any) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        name = self._name.format(index % len(self))
        return self._files.read(self._layers[index])[name]
