"""Compensation: changes to a consumer's weight and bias that make up for its pruned inputs.

A method handles one site, whose columns are in order of importance. It computes all levels (kept
widths) at once, because the kept columns of a level are a prefix of those of the next one.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ppf.pruning.statistics import damped
from ppf.ranges import Positive


@runtime_checkable
class Sliceable(Protocol):
    """A matrix in memory, or on disk, where indexing reads only the selected part."""

    def __getitem__(self, part: Any) -> Tensor: ...


@dataclass(frozen=True)
class Factors:
    """The weights of all levels of a site, stored as two factors V and M.

    The weight of a level with K columns is V[:, :K] M[:K, :K].

    Args:
        projected: V, [hidden, columns].
        inverse: M, [columns, columns], lower triangular.
        widths: number of columns of each level.
        dtype: dtype of the weights that indexing returns.
        device: device of the weights that indexing returns.
    """

    projected: Sliceable
    inverse: Sliceable
    widths: Sequence[int]
    dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")

    def __getitem__(self, level: int) -> Tensor:
        width = self.widths[level]
        projected, inverse = self.projected[:, :width], self.inverse[:width, :width]
        return (projected.to(self.device) @ inverse.to(self.device)).to(self.dtype)


@dataclass(frozen=True)
class Levels:
    """The compensated consumer of one site, for every level.

    Args:
        errors: relative reconstruction error ‖XWᵀ − X′W′ᵀ‖² / ‖XWᵀ‖² of each level on calibration
            text.
        weights: weight [hidden, width] of each level below the dense one, or the factors of these
            weights; None: the leading columns of the dense weight.
        biases: vector that each level adds to the consumer's bias; None: no level adds one.
    """

    errors: Float[Tensor, " levels"]
    weights: Sequence[Tensor] | Factors | None = None
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
            x: inputs of the dense consumer.
            weight: weight of the dense consumer.
            widths: number of kept columns of each level, as in `Compensation.levels`.
        """
        whole = _prefix_sums((direction @ weight) * x)
        if self.weights is None:
            outputs = whole[:, list(widths)]
        elif isinstance(self.weights, Factors):
            projected, inverse = (
                part[:, :].to(x) for part in (self.weights.projected, self.weights.inverse)
            )
            # M is lower triangular: the first K entries of M x equal M[:K, :K] x[:K].
            sums = _prefix_sums((direction @ projected) * (x @ inverse.T))
            outputs = torch.cat([sums[:, list(widths[:-1])], whole[:, -1:]], 1)
        else:
            outputs_below = [
                ((direction @ part) * x[:, :width]).float().sum(1)
                for part, width in zip(self.weights, widths[:-1], strict=True)
            ]
            outputs = torch.stack([*outputs_below, whole[:, -1]], 1)
        if self.biases is not None:
            outputs = outputs + direction.float() @ self.biases.float().T
        return outputs


def _prefix_sums(terms: Float[Tensor, "tokens columns"]) -> Float[Tensor, "tokens sums"]:
    """Sums of the first 0, 1, … columns of each row, in float32."""
    return nn.functional.pad(terms.float().cumsum(1), (1, 0))


@dataclass(frozen=True)
class ResidualMoments:
    """Moments of a narrowed consumer's inputs x and of the error r of the residual stream.

    r is the dense model's residual stream behind the block, minus the pruned model's.

    Args:
        gram: E[x xᵀ].
        cross: E[r xᵀ].
        mean: E[r].
    """

    gram: Float[Tensor, "width width"]
    cross: Float[Tensor, "hidden width"]
    mean: Float[Tensor, " hidden"]


WeightAndBias = tuple[Float[Tensor, "hidden width"] | None, Float[Tensor, " hidden"] | None]
"""Changes of a consumer's weight and bias; None: no change."""


class Compensation(ABC):
    """Computes the compensated consumers of one site.

    Attributes:
        refits: whether levels change the weight; False: they keep columns of the dense weight.
    """

    refits: ClassVar[bool] = False

    @abstractmethod
    def levels(
        self,
        weight: Float[Tensor, "hidden columns"],
        gram: Float[Tensor, "columns columns"],
        mean: Float[Tensor, " columns"],
        widths: Sequence[int],
        *,
        factored: bool = False,
    ) -> Levels:
        """Computes all levels.

        Args:
            weight: the consumer's dense weight.
            gram: E[x xᵀ] of the consumer's inputs.
            mean: E[x].
            widths: number of kept columns of each level, ascending from 0 to all columns.
            factored: whether new weights are returned as factors, in float32.
        """

    @abstractmethod
    def refit(self, moments: ResidualMoments) -> WeightAndBias:
        """Changes of a narrowed consumer's weight and bias that reduce the stream's error."""


class NoCompensation(Compensation):
    """No compensation: pruned columns are removed, and nothing else changes."""

    def levels(
        self,
        weight: Tensor,
        gram: Tensor,
        mean: Tensor,
        widths: Sequence[int],
        *,
        factored: bool = False,
    ) -> Levels:
        return Levels(_suffix_errors(weight, gram, gram, widths))

    def refit(self, moments: ResidualMoments) -> WeightAndBias:
        return None, None


class Bias(Compensation):
    """Adds the mean output of the pruned columns to the bias.

    Source: FLAP (arXiv 2312.11983), baseline bias compensation.
    """

    def levels(
        self,
        weight: Tensor,
        gram: Tensor,
        mean: Tensor,
        widths: Sequence[int],
        *,
        factored: bool = False,
    ) -> Levels:
        outputs = torch.cat([weight.new_zeros(len(weight), 1), (weight * mean).cumsum(1)], 1)
        biases = (outputs[:, -1:] - outputs[:, list(widths)]).T.contiguous()
        covariance = gram - torch.outer(mean, mean)
        return Levels(_suffix_errors(weight, covariance, gram, widths), biases=biases)

    def refit(self, moments: ResidualMoments) -> WeightAndBias:
        return None, moments.mean


class LeastSquares(Compensation):
    """Refits the consumer to the kept columns (ridge regression on calibration inputs).

    With kept columns K and Gram matrix G:  W′ = W G[:, K] (G[K, K] + λI)⁻¹.

    All levels share one Cholesky factor LLᵀ = G + λI, because their columns are nested. With
    V = W G L⁻ᵀ, the weight of level K is V[:, K] L⁻¹[K, K]. The next level adds
    V[:, block] L⁻¹[block, :] to it, and its error is smaller by ‖V[:, block]‖².

    Args:
        damping: λ as a fraction of the mean diagonal of G.
        refit_damping: the same for `refit`; larger, because its target is noisier.

    Source: the optimal update of SlimGPT (arXiv 2412.18110). Sharing one factor between levels is
        our own derivation.
    """

    refits = True

    def __init__(self, damping: Positive, refit_damping: Positive) -> None:
        self.damping, self.refit_damping = damping, refit_damping

    def levels(
        self,
        weight: Tensor,
        gram: Tensor,
        mean: Tensor,
        widths: Sequence[int],
        *,
        factored: bool = False,
    ) -> Levels:
        dtype = weight.dtype
        output = weight.double() @ gram.double()
        energy = (output * weight).sum()
        inverse, ridge = _inverse_factor(gram, self.damping)
        projected = output @ inverse.T
        solution = output.zero_()
        weights, errors, start = [], [], 0
        for width in widths[:-1]:
            block = slice(start, width)
            solution[:, :width].addmm_(projected[:, block], inverse[block, :width])
            explained = projected[:, :width].square().sum() + ridge * solution.square().sum()
            errors.append((energy - explained) / energy.clamp_min(_SMALLEST))
            if not factored:
                weights.append(solution[:, :width].to(dtype, copy=True))
            start = width
        errors.append(torch.zeros_like(energy))
        factors = Factors(projected.to(dtype), inverse.to(dtype), widths[:-1])
        chosen = factors if factored else weights
        return Levels(torch.stack(errors).float().clamp(0, 1), chosen)

    def refit(self, moments: ResidualMoments) -> WeightAndBias:
        if not moments.gram.numel():
            return None, None
        ridged, _ = damped(moments.gram, self.refit_damping)
        return torch.linalg.solve(ridged, moments.cross.T.double()).T, None


def _inverse_factor(
    gram: Tensor, damping: float
) -> tuple[Float[Tensor, "columns columns"], Float[Tensor, ""]]:
    """L⁻¹ of LLᵀ = G + λI, and λ; both in float64."""
    ridged, ridge = damped(gram, damping)
    factor = torch.linalg.cholesky(ridged)
    identity = torch.eye(len(gram), dtype=factor.dtype, device=factor.device)
    return torch.linalg.solve_triangular(factor, identity, upper=False, out=identity), ridge


def _suffix_errors(
    weight: Tensor, moment: Tensor, gram: Tensor, widths: Sequence[int]
) -> Float[Tensor, " levels"]:
    """Energy of the columns beyond each width under `moment`, over the whole one under `gram`.

    The energy of columns W under a moment matrix M is tr(W M Wᵀ).
    """
    weight, moment, gram = weight.double(), moment.double(), gram.double()
    energy = ((weight @ gram) * weight).sum().clamp_min(_SMALLEST)
    errors = []
    for width in widths:
        tail = weight[:, width:]
        errors.append(((tail @ moment[width:, width:]) * tail).sum() / energy)
    return torch.stack(errors).float().clamp(min=0)


_SMALLEST = 1e-30  # smallest divisor; a site without energy has error 0
