"""Compensation: what a consumer's remaining weights do about the inputs that went.

Every method works on one site whose columns are already in order of importance, and answers for
all levels (kept widths) at once, because the kept sets are nested prefixes.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Levels:
    """One site's answer for every level.

    Args:
        errors: relative reconstruction error ‖XWᵀ − X′W′ᵀ‖² / ‖XWᵀ‖² on calibration text, per
            level.
        weights: the consumer's weight [hidden, width] per level below the dense one; None: the
            dense weight's prefix.
        biases: what is added to the consumer's bias per level, [levels, hidden]; None: nothing.
    """

    errors: Float[Tensor, " levels"]
    weights: list[Tensor] | None = None
    biases: Float[Tensor, "levels hidden"] | None = None


class Compensation(ABC):
    """Prepares one site."""

    @abstractmethod
    def levels(
        self,
        weight: Float[Tensor, "hidden columns"],
        gram: Float[Tensor, "columns columns"],
        mean: Float[Tensor, " columns"],
        widths: Sequence[int],
    ) -> Levels:
        """Args: `widths`, kept columns per level, ascending from 0 to all of them."""


class NoCompensation(Compensation):
    """The pruned columns just go."""

    def levels(self, weight: Tensor, gram: Tensor, mean: Tensor, widths: Sequence[int]) -> Levels:
        return Levels(_suffix_errors(weight, gram, gram, widths))


class Bias(Compensation):
    """The mean output of the pruned columns moves into the bias.

    Source: FLAP (arXiv 2312.11983), baseline bias compensation.
    """

    def levels(self, weight: Tensor, gram: Tensor, mean: Tensor, widths: Sequence[int]) -> Levels:
        partial = torch.cat([weight.new_zeros(len(weight), 1), (weight * mean).cumsum(1)], 1)
        biases = (partial[:, -1:] - partial[:, list(widths)]).T.contiguous()
        covariance = gram - torch.outer(mean, mean)
        return Levels(_suffix_errors(weight, covariance, gram, widths), biases=biases)


class LeastSquares(Compensation):
    """Refit of the consumer to the columns that stay (ridge regression on calibration inputs).

    With kept columns K and Gram matrix G:  W′ = W G[:, K] (G[K, K] + λI)⁻¹.  For nested prefixes
    all levels share one Cholesky factor LLᵀ = G + λI: with V = W G L⁻ᵀ, level K is
    V[:, K] L⁻¹[K, K]. From one level to the next its leading columns only grow by
    V[:, block] L⁻¹[block, :], and the error falls by ‖V[:, block]‖².

    Args:
        damping: λ as a fraction of the mean diagonal of G.

    Source: the optimal update of SlimGPT (arXiv 2412.18110); the shared factor is our own
        arithmetic.
    """

    def __init__(self, damping: float) -> None:
        self.damping = damping

    def levels(self, weight: Tensor, gram: Tensor, mean: Tensor, widths: Sequence[int]) -> Levels:
        dtype = weight.dtype
        weight, gram = weight.double(), gram.double()
        ridge = self.damping * gram.diagonal().mean()
        identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        factor = torch.linalg.cholesky(gram + ridge * identity)
        inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
        output = weight @ gram
        projected = output @ inverse.T
        energy = (output * weight).sum()

        solution = torch.zeros_like(weight)
        weights, errors, start = [], [], 0
        for width in widths[:-1]:
            block = slice(start, width)
            solution[:, :width] += projected[:, block] @ inverse[block, :width]
            explained = projected[:, :width].square().sum() + ridge * solution.square().sum()
            weights.append(solution[:, :width].to(dtype, copy=True))
            errors.append(1 - explained / energy)
            start = width
        errors.append(torch.zeros_like(energy))
        return Levels(torch.stack(errors).float().clamp(0, 1), weights)


def _suffix_errors(
    weight: Tensor, moment: Tensor, gram: Tensor, widths: Sequence[int]
) -> Float[Tensor, " levels"]:
    """Energy of the columns beyond each width under `moment`, over all of it under `gram`."""
    weight, moment, gram = weight.double(), moment.double(), gram.double()
    energy = ((weight @ gram) * weight).sum()
    errors = []
    for width in widths:
        tail = weight[:, width:]
        errors.append(((tail @ moment[width:, width:]) * tail).sum() / energy)
    return torch.stack(errors).float().clamp(min=0)
