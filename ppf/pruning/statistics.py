"""Second moments of the consumers' inputs (of o_proj and down_proj) on calibration text."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppf.errors import PPFError
from ppf.llm import Coupling, LanguageModel, LayerStream
from ppf.llm.loading import dtype_name


@dataclass(frozen=True)
class Statistics:
    """Moments of each consumer's input x in float32, over the weighted calibration tokens.

    Args:
        gram: E[x xᵀ] for each coupling; it may be read from disk at each use. Of a large mixture
            of experts (see `blocks_of`): one matrix for each expert.
        mean: E[x] for each coupling.
    """

    gram: Sequence[Float[Tensor, "_ _"] | Float[Tensor, "experts _ _"]]
    mean: Sequence[Float[Tensor, " _"]]


def blocks_of(coupling: Coupling) -> tuple[int, int]:
    """Number and width of the square matrices that are a coupling's moments.

    That of a mixture with many channels in all would not fit into memory. So it has one matrix for
    each expert, as if the inputs of different experts were not correlated.
    """
    width = coupling.atoms * coupling.columns  # of the dense model
    large = coupling.kind == "experts" and width > _WIDEST
    return (coupling.atoms, coupling.columns) if large else (1, width)


def squares(gram: Float[Tensor, "*experts n n"]) -> Float[Tensor, " columns"]:
    """E[x²] of each input."""
    return gram.diagonal(dim1=-2, dim2=-1).flatten()


def block_energies(
    weight: Float[Tensor, "hidden columns"], blocks: Float[Tensor, "experts n n"]
) -> Float[Tensor, " experts"]:
    """E‖W x‖² of each expert's part of the columns, in float64."""
    parts = weight.unflatten(1, blocks.shape[:2]).unbind(1)
    energies = [((w.double() @ b.double()) * w).sum() for w, b in zip(parts, blocks, strict=True)]
    return torch.stack(energies)


class TokenWeights(NamedTuple):
    """Weights of tokens in moments; the weights of all tokens sum to 1.

    Most tokens attend to the first token of their window. In many models, its activations are
    hundreds of times larger than those of others (Sun et al. 2024, arXiv 2402.17762), and other
    tokens are predicted badly if pruning changes this. So first tokens get a larger weight than
    their share of the text, and further samples of them are added.

    Args:
        first: of the first token of each window.
        other: of each other token.
    """

    first: float
    other: float

    @classmethod
    def of(
        cls, windows: Int[Tensor, "windows window"], first: Int[Tensor, "tokens 1"]
    ) -> "TokenWeights":
        """The weights of some windows and of further first tokens; without these, all are equal."""
        count, length = windows.shape
        share = max(_FIRST_SHARE, 1 / length) if len(first) else 1 / length
        other = (1 - share) / (count * max(length - 1, 1))
        return cls(share / (count + len(first)), other)

    def split(
        self, x: Float[Tensor, "batch window width"]
    ) -> Iterator[tuple[Float[Tensor, "tokens width"], float]]:
        """The first tokens of a batch and the others, each with their weight."""
        yield x[:, 0], self.first
        yield x[:, 1:].flatten(0, 1), self.other


@torch.inference_mode()
def layer_moments(
    lm: LanguageModel, streams: Sequence[LayerStream], weights: TokenWeights, layer: int
) -> dict[str, Tensor]:
    """The moments of one layer's couplings, by the names `gram.I` and `mean.I` of coupling I.

    If a norm follows a consumer, an error of its output counts relative to the output's size. So
    each token's weight is then divided by the mean square of its output.

    Args:
        streams: the windows of the calibration part, and if there are any, further first tokens.

    Raises:
        PPFError: a moment is not finite.
    """
    couplings = {i: c for i, c in enumerate(lm.couplings) if c.layer == layer}
    device = lm.device_of(layer)
    normed = {i for i, c in couplings.items() if lm.adapter.norm_behind(c) is not None}
    found, total = dict[str, Tensor](), dict[int, Tensor]()  # sums of the weights
    shape = torch.Size()  # of the present batch of tokens

    def enter(module: torch.nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal shape
        shape = inputs[0].shape[:-1]

    def watch(index: int, coupling: Coupling) -> Callable:
        width = coupling.consumer.in_features
        count, size = blocks_of(coupling)
        shape_of_gram = (size, size) if count == 1 else (count, size, size)
        gram = found[f"gram.{index}"] = torch.zeros(shape_of_gram, device=device)
        mean = found[f"mean.{index}"] = torch.zeros(width, device=device)
        total[index] = torch.zeros((), device=device)

        def hook(module: torch.nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            x = inputs[0].view(*shape, -1)  # OPT flattens the inputs of its FFN
            weighted = x
            if index in normed:
                scales = inverse_size(output).view(*shape, 1)
                for scale, weight in weights.split(scales):
                    total[index].add_(scale.square().sum(), alpha=weight)
                x = x.float() * scales
                weighted = x * scales
            for part, weight in weights.split(x):
                with _rounding_to(part.dtype):
                    if count == 1:
                        part = part.float()
                        add_symmetric(gram, part.T, part, weight)
                        continue
                    for own, x in zip(
                        gram, part.unflatten(1, (count, size)).unbind(1), strict=True
                    ):
                        x = x[(x != 0).any(1)].float()  # of the tokens that chose the expert
                        own.addmm_(x.T, x, alpha=weight)
            for part, weight in weights.split(weighted):
                mean.add_(part.float().sum(0), alpha=weight)

        return hook

    hooks = [c.consumer.register_forward_hook(watch(i, c)) for i, c in couplings.items()]
    hooks.append(lm.adapter.layers(lm.model)[layer].register_forward_pre_hook(enter))
    try:
        for stream in streams:
            stream.run(layer)
    finally:
        for handle in hooks:
            handle.remove()
    for index in normed:
        for kind in MOMENTS:
            found[f"{kind}.{index}"] /= total[index]
    for name, moment in found.items():
        if not all(extreme.isfinite() for extreme in moment.aminmax()):
            raise PPFError(
                f"layer {layer} has infinite or NaN activations in {dtype_name(lm.dtype)} on the"
                " calibration text: give model.dtype=float32, or another model."
            )
        found[name] = (mirrored(moment) if moment.dim() == 2 else moment).cpu()
    return found


def inverse_size(outputs: Float[Tensor, "*tokens hidden"]) -> Float[Tensor, "*tokens 1"]:
    """What a norm behind a projection multiplies each token's output by."""
    return outputs.float().square().mean(-1, keepdim=True).clamp_min(_SMALLEST).rsqrt()


def add_symmetric(
    total: Float[Tensor, "n n"],
    left: Float[Tensor, "n k"],
    right: Float[Tensor, "k n"],
    weight: float,
) -> None:
    """Adds `weight` times a symmetric product, in blocks that skip most of the upper triangle.

    Read the result with `mirrored`.
    """
    step = max(_BLOCK, -(-len(total) // 8))
    for start in range(0, len(total), step):
        block = slice(start, start + step)
        total[start:, block].addmm_(left[start:], right[:, block], alpha=weight)


def mirrored(gram: Float[Tensor, "width width"]) -> Float[Tensor, "width width"]:
    """The same matrix, whose lower triangle is copied to the upper one."""
    for start in range(0, len(gram), _BLOCK):
        own = gram[start : start + _BLOCK, start : start + _BLOCK]
        own.copy_(own.tril().add_(own.tril(-1).T))
        gram[start : start + _BLOCK, start + _BLOCK :] = gram[start + _BLOCK :, start:][
            :, :_BLOCK
        ].T
    return gram


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
    moments: Float[Tensor, "columns columns"], damping: float, mean: Tensor | None = None
) -> tuple[Float[Tensor, "columns columns"], Float[Tensor, ""]]:
    """G + λI and λ, in float64, for second moments G; with a mean, for the covariance instead.

    λ is `damping` times the mean diagonal without its largest 1 %: in some layers, one column has
    almost all of the energy (see `TokenWeights`), and would make λ too large for all others.

    Moments are summed in float32. If means are much larger than variances, the covariance consists
    of rounding errors only, and may not be positive. So each column's error is added too.
    """
    gram = moments.to(torch.double, copy=True)
    errors = _ROUNDING * gram.diagonal()
    if mean is not None:
        gram -= torch.outer(mean, mean)
    usual = gram.diagonal().sort().values[: math.ceil(_USUAL * len(gram))]
    ridge = (damping * usual.mean()).clamp_min(_SMALLEST)
    gram.diagonal().add_(errors + ridge)
    return gram, ridge


def cholesky(
    ridged: Float[Tensor, "columns columns"], mean: Float[Tensor, " columns"]
) -> Float[Tensor, "columns columns"]:
    """The Cholesky factor of a covariance that `damped` returned; changes its diagonal if needed.

    The rounding errors of columns with large means are correlated, so the sum of all of them can
    exceed what `damped` adds to one column.
    """
    lower, failed = torch.linalg.cholesky_ex(ridged)
    if failed:
        ridged.diagonal().add_(_ROUNDING * mean.square().sum())
        lower = torch.linalg.cholesky(ridged)
    return lower


MOMENTS = "gram", "mean"
_WIDEST = 16_384  # columns of a mixture whose moments are one matrix
_BLOCK = 512  # smallest number of columns of a block of a product
FIRST_TOKENS = 1024  # further first tokens of windows that moments read
_FIRST_SHARE = 0.05  # of first tokens in the moments; at least their share of a window
_USUAL = 0.99  # share of the columns whose variances determine λ
_ROUNDING = 1e-6  # of sums of many products in float32, relative to a column's second moment
_SMALLEST = 1e-30  # smallest λ
