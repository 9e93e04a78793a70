"""Second moments of the consumers' inputs (of o_proj and down_proj) on calibration text."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppf.errors import PPFError
from ppf.llm import Coupling, LanguageModel, LayerStream
from ppf.llm.loading import dtype_name


@dataclass(frozen=True)
class Statistics:
    """Moments of each consumer's input x over the calibration tokens, in float32.

    Args:
        gram: E[x xᵀ] for each coupling; it may be read from disk at each use.
        mean: E[x] for each coupling.
    """

    gram: Sequence[Float[Tensor, "_ _"]]
    mean: Sequence[Float[Tensor, " _"]]


@torch.inference_mode()
def layer_moments(lm: LanguageModel, stream: LayerStream, layer: int) -> dict[str, Tensor]:
    """The moments of one layer's couplings, by the names `gram.I` and `mean.I` of coupling I.

    Args:
        lm: the dense model.
        stream: the windows of the calibration part.
        layer: the layer.

    Raises:
        PPFError: a moment is not finite.
    """
    couplings = {i: c for i, c in enumerate(lm.couplings) if c.layer == layer}
    device = lm.device_of(layer)
    found = dict[str, Tensor]()

    def watch(index: int, coupling: Coupling) -> Callable:
        width = coupling.consumer.in_features
        gram = found[f"gram.{index}"] = torch.zeros(width, width, device=device)
        mean = found[f"mean.{index}"] = torch.zeros(width, device=device)

        def hook(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
            x = inputs[0].flatten(0, -2)
            with _rounding_to(x.dtype):
                x = x.float()
                gram.addmm_(x.T, x, alpha=1 / stream.tokens)
            mean.add_(x.sum(0), alpha=1 / stream.tokens)

        return hook

    hooks = [c.consumer.register_forward_pre_hook(watch(i, c)) for i, c in couplings.items()]
    try:
        stream.run(layer)
    finally:
        for handle in hooks:
            handle.remove()
    # Products of a matrix with itself are symmetric up to rounding, which depends on the order.
    for name, moment in found.items():
        if not all(extreme.isfinite() for extreme in moment.aminmax()):
            raise PPFError(
                f"layer {layer} has infinite or NaN activations in {dtype_name(lm.dtype)} on the"
                " calibration text: give model.dtype=float32, or another model."
            )
        found[name] = (torch.lerp(moment, moment.T, 0.5) if moment.dim() == 2 else moment).cpu()
    return found


@contextmanager
def _rounding_to(dtype: torch.dtype) -> Iterator[None]:
    """Lets float32 products round their inputs to `dtype`, if this is faster.

    The sums stay in float32. So the copy of a bfloat16 tensor is multiplied exactly, and on many
    processors faster.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if dtype == torch.bfloat16 else before)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


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
    gram = gram.to(torch.double, copy=True)
    ridge = (damping * gram.diagonal().mean()).clamp_min(max(float(least), _SMALLEST))
    gram.diagonal().add_(ridge)
    return gram, ridge


_SMALLEST = 1e-30  # smallest λ
