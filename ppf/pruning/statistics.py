"""Second moments of the consumers' inputs (of o_proj and down_proj) on calibration text."""

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ppf.llm import Coupling, LanguageModel
from ppf.progress import track


@dataclass(frozen=True)
class Statistics:
    """Moments of each consumer's input x over the calibration tokens, in float32.

    Args:
        gram: E[x xᵀ] for each coupling.
        mean: E[x] for each coupling.
    """

    gram: list[Float[Tensor, "_ _"]]
    mean: list[Float[Tensor, " _"]]

    def tensors(self) -> dict[str, Tensor]:
        """The moments by name, for a safetensors file."""
        named = {f"gram.{i}": g for i, g in enumerate(self.gram)}
        return named | {f"mean.{i}": m for i, m in enumerate(self.mean)}

    @classmethod
    def from_tensors(cls, named: dict[str, Tensor]) -> "Statistics":
        """The inverse of `tensors`."""
        count = len(named) // 2
        return cls(
            [named[f"gram.{i}"] for i in range(count)], [named[f"mean.{i}"] for i in range(count)]
        )


@torch.inference_mode()
def collect_statistics(lm: LanguageModel, windows: Int[Tensor, "windows window"]) -> Statistics:
    """Runs the dense model once over the calibration windows.

    Memory: one columns × columns matrix in float32 for each coupling.

    Args:
        lm: the dense model.
        windows: windows of the calibration part.
    """
    couplings = lm.couplings
    widths = [c.consumer.in_features for c in couplings]
    gram = [torch.zeros(w, w, device=lm.device) for w in widths]
    mean = [torch.zeros(w, device=lm.device) for w in widths]

    def watch(index: int) -> Callable:
        def hook(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].flatten(0, -2).float()
            gram[index].addmm_(x.T, x, alpha=1 / windows.numel())
            mean[index].add_(x.sum(0), alpha=1 / windows.numel())

        return hook

    hooks = [c.consumer.register_forward_pre_hook(watch(i)) for i, c in enumerate(couplings)]
    try:
        for batch in track(windows.to(lm.device).split(4), "Calibrating"):
            lm.model(batch, use_cache=False, logits_to_keep=1)
    finally:
        for handle in hooks:
            handle.remove()
    # Products of a matrix with itself are symmetric but for rounding, which depends on the order.
    return Statistics([torch.lerp(g, g.T, 0.5).cpu() for g in gram], [m.cpu() for m in mean])


def by_atom(coupling: Coupling, columns: Float[Tensor, " columns"]) -> Float[Tensor, " atoms"]:
    """Sums one value per column of the consumer over the columns of each atom."""
    return columns.view(coupling.atoms, coupling.columns).sum(1)


def expand(atoms: Int[Tensor, " atoms"], size: int) -> Int[Tensor, " rows"]:
    """The indices of the rows (or columns) of the given atoms, `size` consecutive ones each."""
    return (atoms[:, None] * size + torch.arange(size, device=atoms.device)).flatten()


def damped(
    gram: Float[Tensor, "columns columns"],
    damping: float,
    least: Float[Tensor, ""] | float = 0.0,
) -> tuple[Float[Tensor, "columns columns"], Float[Tensor, ""]]:
    """G + λI and λ, in float64.

    λ is `damping` times the mean diagonal of G. It is at least `least`, and above 0.
    """
    gram = gram.double()
    ridge = (damping * gram.diagonal().mean()).clamp_min(max(float(least), _SMALLEST))
    return gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), ridge


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
    checksum = (file.metadata() or {}).get(_CHECKSUM)  # older files have none
    named = ((name, file.get_tensor(name)) for name in sorted(file.keys()))
    if checksum and checksum != _checksum(named):
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


_CHECKSUM = "crc32"
_SMALLEST = 1e-30  # smallest λ
