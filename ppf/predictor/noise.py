"""Noise of the Gaussian process: variance of a residual that is independent between policies."""

import torch
from gpytorch.likelihoods.noise_models import Noise
from jaxtyping import Float
from linear_operator.operators import DiagLinearOperator
from torch import Tensor

from ppf.predictor.kernels import DEVIATION, register_log_parameter

POWER = 8  # of the summed effects


class GrowingNoise(Noise):
    """Noise variance: a constant plus a term that grows with the summed effects.

        v(x) = (σ² + γ (Σ_i x_i²)⁸) / w

    where x_i² is the effect at site i and w the row's weight. The second term keeps a few
    catastrophic policies from distorting the predictions for all others.

    Args:
        roots: columns of the roots of effects, x_i.
    """

    def __init__(self, roots: slice) -> None:
        super().__init__()
        self.roots = roots
        register_log_parameter(self, "log_constant", 1, DEVIATION)
        register_log_parameter(self, "log_growth", 1, DEVIATION)

    def variance(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, " batch"]:
        """The variance of rows of weight one."""
        growing = self.log_growth.exp() * self.summed_effects(x) ** POWER
        return self.log_constant.exp() + growing

    def summed_effects(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, " batch"]:
        """Σ_i x_i²."""
        return x[:, self.roots].square().sum(1)

    def forward(self, x: Tensor, *, weights: Tensor, shape: torch.Size) -> DiagLinearOperator:
        return DiagLinearOperator(self.variance(x) / weights)
