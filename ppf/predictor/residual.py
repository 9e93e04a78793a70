"""A Gaussian process on the residuals of an ensemble, for interactions between sites."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from gpytorch.distributions import MultivariateNormal
from gpytorch.kernels import MaternKernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.likelihoods.noise_models import Noise
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.models import GP
from gpytorch.settings import fast_computations
from jaxtyping import Float, Int, Shaped
from linear_operator import to_dense
from linear_operator.operators import DiagLinearOperator
from torch import Tensor

from ppf.predictor.kernels import (
    DEVIATION,
    SumOfProductsKernel,
    policy_kernel,
    register_log_parameter,
)
from ppf.predictor.policy_features import ROOTS, PolicyFeatures
from ppf.progress import track
from ppf.space import Space


class Posterior(NamedTuple):
    """Posterior mean and predictive variance of the residual; the variance includes noise."""

    mean: Float[Tensor, " batch"]
    variance: Float[Tensor, " batch"]


class GaussianProcess(GP):
    """A Gaussian process on the residuals of an ensemble, as a function of the policy.

    It is fitted with gpytorch, and predicts with the cached inverse Cholesky factor of the rows'
    covariance. The residual of the dense policy is known to be zero. Far from measured policies
    the posterior mean tends to zero.

    Args:
        space: the space of the policies.
        steps: optimizer steps of the fit of the hyper-parameters.
        huber: residual above which a row counts less: its weight is multiplied by
            huber / |residual|.

    Attributes:
        points: features of the rows that the process is conditioned on.
        inverse_cholesky: L⁻¹, where L Lᵀ is the covariance of these rows, noise included.
        coefficients: (L Lᵀ)⁻¹ times their residuals.

    Source: Rasmussen & Williams, "Gaussian Processes for Machine Learning" (2006), chapters 2, 5.
    """

    points: Float[Tensor, "rows features"]
    inverse_cholesky: Float[Tensor, "rows rows"]
    coefficients: Float[Tensor, " rows"]

    def __init__(self, space: Space, *, steps: int, huber: float) -> None:
        super().__init__()
        self.steps, self.huber = steps, huber
        self.load_strict_shapes(False)  # of the buffers: a checkpoint has any number of rows
        self.features = PolicyFeatures(space)
        self.kernel = policy_kernel(self.features.columns)
        self.noise = GrowingNoise(self.features.columns[ROOTS])
        for name in ("points", "inverse_cholesky", "coefficients"):
            self.register_buffer(name, torch.empty(0))
        self.requires_grad_(False)

    @property
    def fitted(self) -> bool:
        return self.coefficients.numel() > 0

    def forward(self, kept: Shaped[Tensor, "batch sites"]) -> Posterior:
        """Posterior of each policy; widths may lie between whole units."""
        size = max(_IN_CACHE // len(self.points), 1) if kept.device.type == "cpu" else len(kept)
        parts = [self._posterior(x) for x in self.features(kept).split(size)]
        return Posterior(*map(torch.cat, zip(*parts, strict=True)))

    def fit(
        self,
        effects: Float[Tensor, "sites levels"],
        kept: Int[Tensor, "rows sites"],
        residuals: Float[Tensor, "members rows"],
        weights: Float[Tensor, "members rows"],
    ) -> Posterior:
        """Fits the hyper-parameters and conditions on all rows.

        Returns the out-of-fold prediction of each row, with hyper-parameters fitted on the other
        half of the folds.

        Args:
            effects: predicted cost of keeping k units at a site and all elsewhere, [site, k].
            residuals: target minus each member's prediction.
            weights: of the rows; zero for the one member that leaves the row out.
        """
        self.features.effects.copy_(effects)
        self.kernel.known.copy_(self.features.dense)
        fold, weight = weights.argmin(0), weights.amax(0)
        unseen = residuals.gather(0, fold[None])[0]
        out_of_fold = torch.empty(2, len(kept), device=kept.device)
        for half in torch.arange(len(residuals), device=kept.device).chunk(2):
            others = ~torch.isin(fold, half)
            self._fit_hyperparameters(kept[others], unseen[others], weight[others])
            for member in half:
                rows = fold == member
                self.condition(kept, residuals[member], weights[member])
                out_of_fold[:, rows] = torch.stack(self(kept[rows]))
        self._fit_hyperparameters(kept, unseen, weight)
        self.condition(kept, residuals.mean(0), weight)
        return Posterior(*out_of_fold)

    def condition(
        self,
        kept: Int[Tensor, "rows sites"],
        residuals: Float[Tensor, " rows"],
        weights: Float[Tensor, " rows"],
    ) -> None:
        """Conditions the process on these rows only, without a new fit of hyper-parameters."""
        seen = weights > 0
        with _double(self):
            x, y = self.features(kept[seen]), residuals[seen].double()
            noise = self.noise.variance(x) / self._robust(weights[seen], y)
            inverse = inverse_cholesky(to_dense(self.kernel(x, x)) + noise.diag())
            self.points, self.inverse_cholesky = x, inverse
            self.coefficients = inverse.T @ (inverse @ y)

    def _posterior(self, x: Float[Tensor, "batch features"]) -> Posterior:
        covariance, variance = self.kernel.with_variance(x, self.points)
        explained = (covariance @ self.inverse_cholesky.T).square().sum(1)
        variance = (variance - explained).clamp(min=0) + self.noise.variance(x)
        return Posterior(covariance @ self.coefficients, variance)

    def _fit_hyperparameters(self, kept: Tensor, residuals: Tensor, weights: Tensor) -> None:
        some = torch.linspace(0, len(kept) - 1, min(_ROWS, len(kept))).long()
        with _double(self):
            x, y = self.features(kept[some]), residuals[some].double()
            weights = self._robust(weights[some], y)
            _initialise(self, x, y)
            maximise_likelihood(self, x, y, weights, self.steps)

    def _robust(
        self, weights: Float[Tensor, " rows"], residuals: Float[Tensor, " rows"]
    ) -> Float[Tensor, " rows"]:
        """Weights, smaller for rows of large residuals, as in a Huber loss."""
        return weights * self.huber / residuals.abs().clamp(min=self.huber)


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
        growing = self.log_growth.exp() * self.summed_effects(x) ** _POWER
        return self.log_constant.exp() + growing

    def summed_effects(self, x: Float[Tensor, "batch features"]) -> Float[Tensor, " batch"]:
        """Σ_i x_i²."""
        return x[:, self.roots].square().sum(1)

    def forward(self, x: Tensor, *, weights: Tensor, shape: torch.Size) -> DiagLinearOperator:
        return DiagLinearOperator(self.variance(x) / weights)


def _initialise(process: GP, x: Float[Tensor, "rows features"], y: Float[Tensor, " rows"]) -> None:
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
    noise.log_growth.fill_((variance / 8 / effects**_POWER).log())


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


def inverse_cholesky(covariance: Float[Tensor, "rows rows"]) -> Float[Tensor, "rows rows"]:
    """L⁻¹, where L Lᵀ is the covariance."""
    factor = torch.linalg.cholesky(covariance)
    identity = torch.eye(len(factor)).to(factor)
    return torch.linalg.solve_triangular(factor, identity, upper=False)


@contextmanager
def _double(process: GaussianProcess) -> Iterator[None]:
    """Computes in double precision inside: Cholesky factors of near-singular matrices need it."""
    process.double()
    try:
        yield
    finally:
        process.float()


_ROWS = 1024  # largest number of rows that hyper-parameters are fitted to
_IN_CACHE = 1 << 17  # covariances that a CPU works on at a time
_RATE = 0.1  # of a logarithm, in one step of the fit
_POWER = 8  # of the summed effects, in the noise
_SMALLEST = 1e-6  # residual, distance between policies, or summed effect
