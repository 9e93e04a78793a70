"""Second moments of what the consumers (o_proj, down_proj) read on calibration text."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int
from safetensors.torch import save_file
from torch import Tensor

from ppf.llm import Coupling, LanguageModel
from ppf.progress import track


@dataclass(frozen=True)
class Statistics:
    """Per coupling, moments of the consumer's input x over calibration tokens, float32.

    Args:
        gram: E[x xᵀ].
        mean: E[x].
    """

    gram: list[Float[Tensor, "_ _"]]
    mean: list[Float[Tensor, " _"]]

    def tensors(self) -> dict[str, Tensor]:
        """By name, as safetensors wants them."""
        named = {f"gram.{i}": g for i, g in enumerate(self.gram)}
        return named | {f"mean.{i}": m for i, m in enumerate(self.mean)}

    @classmethod
    def from_tensors(cls, named: dict[str, Tensor]) -> "Statistics":
        count = len(named) // 2
        return cls(
            [named[f"gram.{i}"] for i in range(count)], [named[f"mean.{i}"] for i in range(count)]
        )


@torch.inference_mode()
def collect_statistics(lm: LanguageModel, windows: Int[Tensor, "windows window"]) -> Statistics:
    """One pass of the dense model over the calibration windows.

    Memory: one columns × columns matrix in float32 for every coupling.
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
    return Statistics([g.cpu() for g in gram], [m.cpu() for m in mean])


def by_atom(coupling: Coupling, columns: Float[Tensor, " columns"]) -> Float[Tensor, " atoms"]:
    """Sums what belongs to the consumer's columns over each atom."""
    return columns.view(coupling.atoms, coupling.columns).sum(1)


def expand(atoms: Int[Tensor, " atoms"], size: int) -> Int[Tensor, " rows"]:
    """Atom numbers to the rows (or columns) that they stand for, `size` consecutive ones each."""
    return (atoms[:, None] * size + torch.arange(size, device=atoms.device)).flatten()


def damped(
    gram: Float[Tensor, "columns columns"], damping: float
) -> tuple[Float[Tensor, "columns columns"], Float[Tensor, ""]]:
    """G + λI in float64, and λ: `damping` times the mean diagonal of G, more than 0 if G is 0."""
    gram = gram.double()
    ridge = (damping * gram.diagonal().mean()).clamp_min(_SMALLEST)
    return gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device), ridge


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Writes a safetensors file."""
    save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, path)


_SMALLEST = 1e-30  # ridge
