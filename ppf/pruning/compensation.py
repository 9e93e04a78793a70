"""Compensation: changes to a consumer's weight and bias that make up for its pruned inputs.

A method handles one site, whose columns are in order of importance. It computes all levels (kept
widths) at once, because the kept columns of a level are a prefix of those of the next one.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ppf.pruning.statistics import block_energies, cholesky, damped
from ppf.ranges import Positive


@dataclass(frozen=True)
class Factors:
    """The weights of all levels of a site, stored as two factors V and M.

    The weight of a level with K columns is W[:, :K] − V[:, K:] M[K:, :K], where W is the dense
    weight. M is lower triangular. It is stored in blocks of columns, each from its first row on,
    which leave out most of the upper triangle.

    Args:
        projected: V, [hidden, columns]; a tensor, or a part of a file that indexing reads.
        inverse: the blocks of M (see `column_blocks`), likewise.
        widths: number of columns of each level.
        device: on which weights are computed.
    """

    projected: Any
    inverse: Sequence[Any]
    widths: Sequence[int]
    device: torch.device = torch.device("cpu")

    def weight(
        self, level: int, dense: Float[Tensor, "hidden columns"]
    ) -> Float[Tensor, "hidden width"]:
        """The weight of a level, in the dtype of the dense weight."""
        width, start = self.widths[level], 0
        pruned = self.projected[:, width:].to(self.device)
        changes = [pruned[:, :0]]
        for block in self.inverse:
            if start < width:
                rows = block[width - start :, : width - start].to(self.device)
                changes.append(pruned @ rows)
                start += rows.shape[1]
        kept = dense[:, :width].to(self.device, torch.float)
        return (kept - torch.cat(changes, 1)).to(dense.dtype)

    def on(self, device: torch.device) -> "Factors":
        """The factors in a device's memory."""
        inverse = [block[:].to(device) for block in self.inverse]
        return replace(self, projected=self.projected[:].to(device), inverse=inverse)


@dataclass(frozen=True)
class Levels:
    """The compensated consumer of one site, for every level.

    Args:
        errors: relative reconstruction error ‖XWᵀ − X′W′ᵀ‖² / ‖XWᵀ‖² of each level on calibration
            text.
        factors: of the weights of the levels below the dense one; None: these weights are the
            leading columns of the dense weight.
        biases: vector that each level adds to the consumer's bias; None: no level adds one.
    """

    errors: Float[Tensor, " levels"]
    factors: Factors | None = None
    biases: Float[Tensor, "levels hidden"] | None = None

    def along(
        self,
        direction: Float[Tensor, "tokens hidden"],
        x: Float[Tensor, "tokens columns"],
        weight: Float[Tensor, "hidden columns"],
        widths: Sequence[int],
    ) -> Float[Tensor, "tokens levels"]:
        """Inner product of the consumer's output with a direction, for every level.

        Args:
            direction: one vector for each token.
            x, weight: inputs and weight of the dense consumer.
            widths: number of kept columns of each level, as in `Compensation.levels`.
        """
        if self.factors is None:
            terms = (direction @ weight) * x
        else:
            # W = V M, and M is lower triangular: the first K entries of M x equal M[:K, :K] x[:K].
            columns, parts = x.shape[1], column_blocks(x.shape[1])
            projected, inverse = self.factors.projected[:].to(x), x.new_zeros(columns, columns)
            for i, block in zip(parts, self.factors.inverse, strict=True):
                inverse[i.start :, i] = block[:].to(x)
            mapped = ((i, x[:, : i.stop] @ inverse[i, : i.stop].T) for i in parts)
            terms = torch.cat([(direction @ projected[:, i]).float() * y for i, y in mapped], 1)
        sizes = [wide - narrow for narrow, wide in pairwise(widths)]
        if len(set(sizes)) == 1:
            sums = terms.float().unflatten(1, (-1, sizes[0])).sum(2)  # of each unit
        else:
            sums = torch.stack([part.sum(1) for part in terms.float().split(sizes, 1)], 1)
        outputs = nn.functional.pad(sums.cumsum(1), (1, 0))
        if self.biases is not None:
            outputs = outputs + direction.float() @ self.biases.float().T
        return outputs

    def silenced(self) -> "Levels":
        """The same levels, but without units the output is zero instead of a bias."""
        if self.biases is None:
            return self
        biases, errors = self.biases.clone(), self.errors.clone()
        biases[0], errors[0] = 0, 1
        return replace(self, biases=biases, errors=errors)


@dataclass(frozen=True)
class ResidualMoments:
    """Moments of a projection's inputs x and of what the pruned model lacks, r.

    For a consumer, r is the dense model's residual stream after the block, minus the pruned
    model's. For the producers of a block, it is the dense model's inputs minus x.

    Args:
        gram: E[x xᵀ]; empty for a large mixture (see `ppf.pruning.statistics.blocks_of`).
        cross: E[r xᵀ]; empty where `gram` is.
        mean: E[r].
        input_mean: E[x].
    """

    gram: Float[Tensor, "width width"]
    cross: Float[Tensor, "hidden width"]
    mean: Float[Tensor, " hidden"]
    input_mean: Float[Tensor, " columns"]

    def without(self, consumer: nn.Linear) -> "ResidualMoments":
        """The moments of what is still lacking when the consumer's outputs are added.

        Empty ones add nothing, since the outputs of an empty block are its bias.
        """
        if not self.input_mean.numel():
            return self
        weight, cross = consumer.weight.to(self.gram.device, torch.double), self.cross
        mean, full = self.mean - weight @ self.input_mean.double(), self.gram.numel() > 0
        if full:
            cross = cross - weight @ self.gram.double()
        if consumer.bias is not None:
            bias = consumer.bias.to(mean)
            mean = mean - bias
            cross = cross - torch.outer(bias, self.input_mean.double()) if full else cross
        return replace(self, cross=cross, mean=mean)


WeightAndBias = tuple[Float[Tensor, "hidden width"] | None, Float[Tensor, " hidden"] | None]
"""Changes of a consumer's weight and bias; None: no change."""


class Compensation(ABC):
    """Computes the compensated consumers of one site.

    Attributes:
        refits: whether levels change the weight; False: they keep columns of the dense weight.
        biases: whether levels and refits change the bias.
    """

    refits: ClassVar[bool] = False
    biases: ClassVar[bool] = False

    @abstractmethod
    def levels(
        self,
        weight: Float[Tensor, "hidden columns"],
        gram: Float[Tensor, "*experts n n"],
        mean: Float[Tensor, " columns"],
        widths: Sequence[int],
    ) -> Levels:
        """Computes all levels.

        Args:
            weight: the consumer's dense weight.
            gram: E[x xᵀ] of the consumer's inputs; of a large mixture [experts, n, n].
            mean: E[x].
            widths: number of kept columns of each level, ascending from 0 to all columns.
        """

    @abstractmethod
    def refit(self, moments: ResidualMoments) -> WeightAndBias:
        """Changes of a narrowed consumer's weight and bias that reduce the stream's error."""

    def correction(self, moments: ResidualMoments) -> Float[Tensor, "width width"]:
        """The matrix that estimates what a block's inputs lack, from the inputs themselves.

        Args:
            moments: the residual is the dense model's inputs minus the pruned model's.
        """
        raise NotImplementedError(f"{type(self).__name__} changes no weights.")


class NoCompensation(Compensation):
    """No compensation: pruned columns are removed, and nothing else changes."""

    def levels(self, weight: Tensor, gram: Tensor, mean: Tensor, widths: Sequence[int]) -> Levels:
        return Levels(_suffix_errors(weight, gram, gram, widths))

    def refit(self, moments: ResidualMoments) -> WeightAndBias:
        return None, None


class Bias(Compensation):
    """Adds the mean output of the pruned columns to the bias.

    Source: FLAP (arXiv 2312.11983), baseline bias compensation.
    """

    biases = True

    def levels(self, weight: Tensor, gram: Tensor, mean: Tensor, widths: Sequence[int]) -> Levels:
        biases = _suffix_sums(weight * mean)[:, list(widths)].T.to(weight.dtype).contiguous()
        means = mean.view(gram.shape[:-1])  # of each expert's columns, if there are several blocks
        covariance = gram - means[..., :, None] * means[..., None, :]
        return Levels(_suffix_errors(weight, covariance, gram, widths), biases=biases)

    def refit(self, moments: ResidualMoments) -> WeightAndBias:
        return None, moments.mean


class LeastSquares(Compensation):
    """Refits the consumer to the kept columns: ridge regression towards the dense weight.

    With kept columns K, mean m, covariance C and H = C + λI of the inputs, the refitted weight W′
    minimises E‖(W x − W m) − W′(x_K − m_K)‖² + λ‖W′ − W_K‖². Its solution is

        W′ = W H[:, K] H[K, K]⁻¹,  with the intercept W m − W′ m_K.

    All levels share one Cholesky factor LLᵀ = H, because their columns are nested. With V = W L and
    M = L⁻¹, the weight of level K is V[:, K] M[K, K]. With W′ padded by zeros to S, and R for the
    pruned columns, W − S = V[:, R] M[R, :]. So a level's error is ‖V[:, R]‖² − λ‖V[:, R] M[R, :]‖²,
    and its intercept V[:, R] (M m)[R].

    Args:
        damping: λ as a fraction of the mean diagonal of C (see `damped`).
        refit_damping: the same for `refit`; larger, because its target is noisier.

    Source: the optimal update of SlimGPT (arXiv 2412.18110). The intercept, and the one factor that
        all levels share, are our own.
    """

    refits = biases = True

    def __init__(self, damping: Positive, refit_damping: Positive) -> None:
        self.damping, self.refit_damping = damping, refit_damping

    def levels(self, weight: Tensor, gram: Tensor, mean: Tensor, widths: Sequence[int]) -> Levels:
        if gram.dim() == 3:  # no expert's inputs tell anything of another's
            return NoCompensation().levels(weight, gram, mean, widths)
        mean, any_input = self._intercept(mean), gram.any()
        ridged, ridge = damped(gram, self.damping, mean)
        dtype = torch.float if self.damping >= _FLOAT else torch.double
        lower = cholesky(ridged.to(dtype), mean)
        del ridged  # large, and not needed any more
        inverse, projected = _inverse(lower), _times_lower(weight.to(dtype), lower)
        kept, images = list(widths), projected * (inverse @ mean.to(dtype))
        biases = _suffix_sums(images)[:, kept].T
        added = projected.double().square().sum(0) - ridge * _squared_changes(projected, inverse)
        errors = _suffix_sums(added)[kept]
        energy = (errors[0] + biases[0].square().sum()) * any_input  # without any input exactly 0
        blocks = [inverse[part.start :, part].float() for part in column_blocks(len(inverse))]
        return Levels(
            _relative(errors, energy).clamp(max=1),
            Factors(projected.float(), blocks, kept[:-1]),
            biases.float().contiguous() if self.biases else None,
        )

    def refit(self, moments: ResidualMoments) -> WeightAndBias:
        center, shift = self._intercept(moments.input_mean), self._intercept(moments.mean)
        bias = moments.mean if self.biases else None
        if not moments.gram.numel():
            return None, bias
        change = self._slope(moments, shift, center)
        return change, shift - change @ center if self.biases else None

    def correction(self, moments: ResidualMoments) -> Tensor:
        zero = torch.zeros_like(moments.mean, dtype=torch.double)
        return self._slope(moments, zero, zero)  # producers may have no bias for an intercept

    def _slope(self, moments: ResidualMoments, shift: Tensor, center: Tensor) -> Tensor:
        """The ridge regression of the residual minus `shift` on the inputs minus `center`."""
        cross = moments.cross.double() - torch.outer(shift, center)
        ridged, _ = damped(moments.gram, self.refit_damping, center)
        return torch.linalg.solve(ridged, cross.T).T

    def _intercept(self, mean: Tensor) -> Tensor:
        """The mean that the regression subtracts, in float64."""
        return mean.double() if self.biases else torch.zeros_like(mean, dtype=torch.double)


class LeastSquaresWithoutBias(LeastSquares):
    """Ridge regression without intercept: C is E[x xᵀ], m is 0, and no bias is added."""

    biases = False


def column_blocks(columns: int) -> list[slice]:
    """The columns of each block of a triangular matrix."""
    step = -(-columns // _BLOCKS)
    return [slice(start, min(start + step, columns)) for start in range(0, columns, step)]


def _inverse(lower: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """The inverse of a lower triangular matrix.

    Large ones are inverted by blocks: a product takes less time than a solve of the same size.
    """
    if len(lower) <= _SMALL:
        identity = torch.eye(len(lower), dtype=lower.dtype, device=lower.device)
        return torch.linalg.solve_triangular(lower, identity, upper=False, out=identity)
    half = len(lower) // 2
    inverse = torch.zeros_like(lower)
    first = inverse[:half, :half].copy_(_inverse(lower[:half, :half]))
    last = inverse[half:, half:].copy_(_inverse(lower[half:, half:]))
    inverse[half:, :half] = _lower_times(last, _times_lower(lower[half:, :half], first)).neg_()
    return inverse


def _times_lower(
    weight: Float[Tensor, "hidden n"], lower: Float[Tensor, "n n"]
) -> Float[Tensor, "hidden n"]:
    """The product, in blocks that skip most of the upper triangle."""
    parts = column_blocks(len(lower))
    return torch.cat([weight[:, i.start :] @ lower[i.start :, i] for i in parts], 1)


def _lower_times(
    lower: Float[Tensor, "n n"], right: Float[Tensor, "n columns"]
) -> Float[Tensor, "n columns"]:
    """The product, in blocks that skip most of the upper triangle."""
    parts = column_blocks(len(lower))
    return torch.cat([lower[i, : i.stop] @ right[: i.stop] for i in parts])


def _squared_changes(
    projected: Float[Tensor, "hidden n"], inverse: Float[Tensor, "n n"]
) -> Float[Tensor, " n"]:
    """What column k adds to ‖V[:, k:] M[k:]‖², in float64; from the last block to the first."""
    behind, found = torch.zeros_like(projected), list[Tensor]()  # behind: V M of later columns
    for stop in range(len(inverse), 0, -_SMALL):
        part = slice(max(stop - _SMALL, 0), stop)
        own, rows = projected[:, part], inverse[part, :stop]
        products = (own.T @ own) * (rows @ rows.T)
        mixed = (own * (behind[:, :stop] @ rows.T)).sum(0) + products.triu().sum(1)
        found.append(2 * mixed - products.diagonal())
        behind[:, :stop].addmm_(own, rows)
    return torch.cat(found[::-1]).double()


def _suffix_sums(terms: Float[Tensor, "*rows columns"]) -> Float[Tensor, "*rows sums"]:
    """Sums of the columns from 0, 1, … on, in float64; the last one is 0."""
    return nn.functional.pad(terms.double().flip(-1).cumsum(-1), (1, 0)).flip(-1)


def _suffix_errors(
    weight: Tensor, moment: Tensor, gram: Tensor, widths: Sequence[int]
) -> Float[Tensor, " levels"]:
    """Energy of the columns after each width under `moment`, over the total energy under `gram`.

    The energy of columns W under a moment matrix M is tr(W M Wᵀ). Each width adds the energy of its
    own columns, and twice their products with the later columns.
    """
    if gram.dim() == 3:
        ends = [width // gram.shape[1] for width in widths]
        left = _suffix_sums(block_energies(weight, moment))[ends]
        return _relative(left, block_energies(weight, gram).sum())
    weight, moment, gram = weight.double(), moment.double(), gram.double()
    beyond, stop, errors = weight.new_zeros(()), weight.shape[1], []
    for width in reversed(widths):
        products = weight[:, width:stop] @ moment[width:stop, width:] * weight[:, width:]
        own, mixed = products.sum(0).tensor_split([stop - width])
        beyond, stop = beyond + own.sum() + 2 * mixed.sum(), width
        errors.append(beyond)
    return _relative(torch.stack(errors[::-1]), ((weight @ gram) * weight).sum())


def _relative(
    errors: Float[Tensor, " levels"], energy: Float[Tensor, ""]
) -> Float[Tensor, " levels"]:
    """Errors as shares of the energy, in float32; a site without energy has error 0."""
    return (errors / energy).where(energy > 0, 0).clamp(min=0).float()


_BLOCKS = 8  # of columns of a product with a triangular matrix
_SMALL = 512  # rows of a triangular matrix that is inverted by one solve, or multiplied at once
_FLOAT = 0.1  # smallest damping with which float32 finds the errors to 1e-7
