"""Hyper-parameters of the Gaussian process: initial values and fit."""

import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import MaternKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.models import GP
from gpytorch.settings import fast_computations
from jaxtyping import Float
from torch import Tensor

from ppf.predictor.kernels import SumOfProductsKernel
from ppf.predictor.noise import POWER
from ppf.progress import track


def initialise(process: GP, x: Float[Tensor, "rows features"], y: Float[Tensor, " rows"]) -> None:
    """Sets a Gaussian process's hyper-parameters to initial values.

    A quarter of the variance is noise: one half of it is the constant term, the other half the
    growing term at the mean summed effect. The kernel's terms get equal parts of the rest.
    Lengthscales are median distances, and relevances are one.

    Args:
        process: its `kernel` is a `policy_kernel`, its `noise` a `GrowingNoise`.
        x: features of rows.
        y: residuals of the rows.
    """
    variance = y.square().mean().clamp(min=_SMALLEST**2)
    weighted, noise = process.kernel.base_kernel, process.noise
    weighted.log_relevance.zero_()
    _initialise_terms(weighted.base_kernel, x, 0.75 * variance)
    effects = noise.summed_effects(x).mean().clamp(min=_SMALLEST)
    noise.log_constant.fill_((variance / 8).log())
    noise.log_growth.fill_((variance / 8 / effects**POWER).log())


def _initialise_terms(
    kernel: SumOfProductsKernel, x: Float[Tensor, "rows features"], variance: Float[Tensor, ""]
) -> None:
    for name, factor in kernel.factors.items():
        if isinstance(factor, MaternKernel):
            distances = torch.pdist(x[:, kernel.columns[name]])
            middle = distances.median() if len(distances) else distances.new_ones(())
            factor.lengthscale = middle.clamp(min=_SMALLEST)
    share = variance / len(kernel.terms)
    for log_scale, product in kernel.products(x, x, diag=True):
        log_scale.copy_((share / product.mean().clamp(min=1 / len(x))).log())


def maximise_likelihood(
    process: GP,
    x: Float[Tensor, "rows features"],
    y: Float[Tensor, " rows"],
    weights: Float[Tensor, " rows"],
    steps: int,
) -> None:
    """Maximises the marginal likelihood times priors that are centred on the present values.

    Args:
        process: has a `kernel` and `noise`.
        x: features of rows.
        y: residuals of the rows.
        weights: what the noise variance of each row is divided by.
        steps: optimizer steps.

    Source: Rasmussen & Williams, "Gaussian Processes for Machine Learning" (2006), chapter 5.
    """
    for _, module, prior, closure, _ in process.named_priors():
        prior.loc.copy_(closure(module))
    likelihood = GaussianLikelihood()
    likelihood.noise_covar = process.noise
    objective = ExactMarginalLogLikelihood(likelihood, process)
    optimizer = torch.optim.Adam(process.requires_grad_(True).parameters(), lr=_RATE)
    with torch.enable_grad(), fast_computations(log_prob=False):  # exact, by Cholesky
        for _ in track(range(steps), "Fitting the Gaussian process"):
            optimizer.zero_grad()
            distribution = MultivariateNormal(torch.zeros_like(y), process.kernel(x))
            (-objective(distribution, y, x, weights=weights)).backward()
            optimizer.step()
    process.requires_grad_(False)


_RATE = 0.1  # of a logarithm, in one step
_SMALLEST = 1e-6  # residual, distance between policies, or summed effect
