"""Compensation: what a consumer's remaining weights do about the inputs that went.

Every method works on one site whose columns are already in order of importance, and answers for
all levels (kept widths) at once, because the kept sets are nested prefixes.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ppf.pruning.statistics import damped


@runtime_checkable
class Sliceable(Protocol):
    """A matrix in memory, or one on disk of which only the part asked for is read."""

    def __getitem__(self, part: Any) -> Tensor: ...


@dataclass(frozen=True)
class Factors:
    """All levels of a site as two nested factors: level K is V[:, :K] M[:K, :K].

    Args:
        projected: V, [hidden, columns].
        inverse: M, [columns, columns], lower triangular.
        widths: columns of each level.
        dtype, device: of the levels.
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
    """One site's answer for every level.

    Args:
        errors: relative reconstruction error ‖XWᵀ − X′W′ᵀ‖² / ‖XWᵀ‖² on calibration text, per
            level.
        weights: the consumer's weight [hidden, width] per level below the dense one, ready or as
            factors; None: the dense weight's prefix.
        biases: what is added to the consumer's bias per level, [levels, hidden]; None: nothing.
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
        """What the consumer puts out along a direction, under every level.

        Args:
            x: what the dense consumer reads.
            weight: the dense consumer's.
            widths: kept columns per level, as for `Compensation.levels`.
        """
        whole = _prefix_sums((direction @ weight) * x)
        if self.weights is None:
            outputs = whole[:, list(widths)]
        elif isinstance(self.weights, Factors):
            projected, inverse = (
                part[:, :].to(x) for part in (self.weights.projected, self.weights.inverse)
            )
            # M is lower triangular, so M x has the leading part of each level's.
            sums = _prefix_sums((direction @ projected) * (x @ inverse.T))
            outputs = torch.cat([sums[:, list(widths[:-1])], whole[:, -1:]], 1)
        else:
            ready = [
                ((direction @ part) * x[:, :width]).float().sum(1)
                for part, width in zip(self.weights, widths[:-1], strict=True)
            ]
            outputs = torch.stack([*ready, whole[:, -1]], 1)
        if self.biases is not None:
            outputs = outputs + direction.float() @ self.biases.float().T
        return outputs


def _prefix_sums(terms: Float[Tensor, "tokens columns"]) -> Float[Tensor, "tokens sums"]:
    """Sums of the first 0, 1, … columns, in float32."""
    return nn.functional.pad(terms.float().cumsum(1), (1, 0))


@dataclass(frozen=True)
class Shortfall:
    """What the residual stream lacks behind a narrowed block, r, and what its consumer reads, x.

    Args:
        gram: E[x xᵀ].
        cross: E[r xᵀ].
        mean: E[r].
    """

    gram: Float[Tensor, "width width"]
    cross: Float[Tensor, "hidden width"]
    mean: Float[Tensor, " hidden"]


Correction = tuple[Float[Tensor, "hidden width"] | None, Float[Tensor, " hidden"] | None]


class Compensation(ABC):
    """Prepares one site.

    Attributes:
        refits: levels have weights of their own.
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
        """Prepares all levels.

        Args:
            widths: kept columns per level, ascending from 0 to all of them.
            factored: give new weights as factors in float32, not ready.
        """

    @abstractmethod
    def correction(self, shortfall: Shortfall) -> Correction:
        """What to add to a narrowed consumer's weight and bias, so that the stream lacks less."""


class NoCompensation(Compensation):
    """The pruned columns just go."""

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

    def correction(self, shortfall: Shortfall) -> Correction:
        return None, None


class Bias(Compensation):
    """The mean output of the pruned columns moves into the bias.

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
        partial = torch.cat([weight.new_zeros(len(weight), 1), (weight * mean).cumsum(1)], 1)
        biases = (partial[:, -1:] - partial[:, list(widths)]).T.contiguous()
        covariance = gram - torch.outer(mean, mean)
        return Levels(_suffix_errors(weight, covariance, gram, widths), biases=biases)

    def correction(self, shortfall: Shortfall) -> Correction:
        return None, shortfall.mean


class LeastSquares(Compensation):
    """Refit of the consumer to the columns that stay (ridge regression on calibration inputs).

    With kept columns K and Gram matrix G:  W′ = W G[:, K] (G[K, K] + λI)⁻¹.  For nested prefixes
    all levels share one Cholesky factor LLᵀ = G + λI: with V = W G L⁻ᵀ, level K is
    V[:, K] L⁻¹[K, K]. From one level to the next its leading columns only grow by
    V[:, block] L⁻¹[block, :], and the error falls by ‖V[:, block]‖².

    Args:
        damping: λ as a fraction of the mean diagonal of G.
        refit_damping: the same for `correction`, whose target is noisier.

    Source: the optimal update of SlimGPT (arXiv 2412.18110); the shared factor is our own
        arithmetic.
    """

    refits = True

    def __init__(self, damping: float, refit_damping: float) -> None:
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

    def correction(self, shortfall: Shortfall) -> Correction:
        if not shortfall.gram.numel():
            return None, None
        ridged, _ = damped(shortfall.gram, self.refit_damping)
        return torch.linalg.solve(ridged, shortfall.cross.T.double()).T, None


def _inverse_factor(
    gram: Tensor, damping: float
) -> tuple[Float[Tensor, "columns columns"], Float[Tensor, ""]]:
    """L⁻¹ with LLᵀ = G + λI, and λ; in float64."""
    ridged, ridge = damped(gram, damping)
    factor = torch.linalg.cholesky(ridged)
    identity = torch.eye(len(gram), dtype=factor.dtype, device=factor.device)
    return torch.linalg.solve_triangular(factor, identity, upper=False, out=identity), ridge


def _suffix_errors(
    weight: Tensor, moment: Tensor, gram: Tensor, widths: Sequence[int]
) -> Float[Tensor, " levels"]:
    """Energy of the columns beyond each width under `moment`, over all of it under `gram`."""
    weight, moment, gram = weight.double(), moment.double(), gram.double()
    energy = ((weight @ gram) * weight).sum().clamp_min(_SMALLEST)
    errors = []
    for width in widths:
        tail = weight[:, width:]
        errors.append(((tail @ moment[width:, width:]) * tail).sum() / energy)
    return torch.stack(errors).float().clamp(min=0)


_SMALLEST = 1e-30  # energy of a site; one that has none loses none
