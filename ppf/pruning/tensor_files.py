"""Tensors in safetensors files that carry a checksum."""

import zlib
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

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
