"""A predictor that starts without labels: expected losses, corrected by measured policies."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from gpytorch.likelihoods.noise_models import Noise
from gpytorch.models import GP
from jaxtyping import Bool, Float, Int, Shaped
from linear_operator import to_dense
from linear_operator.operators import DiagLinearOperator
from torch import Tensor

from ppf.labels.table import Labels
from ppf.predictor.base import PredictorInputs
from ppf.predictor.kernels import DEVIATION_OF_SUMS, SiteSumKernel, register_log_parameter
from ppf.predictor.policy_features import at_widths
from ppf.predictor.protocol import Prediction
from ppf.predictor.residual import inverse_cholesky, maximise_likelihood
from ppf.predictor.scores import interval_factor
from ppf.pruning import SiteFeatures
from ppf.ranges import Count, Natural, Positive, Share
from ppf.space import uniform


@dataclass(kw_only=True)
class ExpectedLoss:
    """Log-perplexity from sums over sites that need no labels, corrected by measured policies.

    A policy's excess is its log-perplexity minus that of the dense model. Before any policy is
    measured, its prediction is the geometric mean of two sums over sites:

        excess(k) = factor √(Σ_s L_s(k_s) · Σ_s c E_s(k_s))

    L_s(k) is the expected loss of keeping k units at site s (`ppf.pruning.sensitivity`), E_s(k) the
    reconstruction error times the site's share of the residual stream's energy. The factor c makes
    both sums equal where every site loses half its units.

    After the first round, gradients are computed at k*, the policy of lowest loss that the search
    has measured (a proposal, uniform pruning or a rule's policy). They give D_s(k), the estimated
    change of the loss if site s keeps k units instead (`ppf.pruning.loss_changes`). With S the mean
    above, the prediction is then relative to k*:

        excess(k) = excess(k*) exp(weight Σ_s D_s(k_s) / excess(k*)) (S(k) / S(k*))^(1 - weight)

    A Gaussian process on the residuals of the excess's logarithm learns from each measured policy.
    For this fit, an excess below exp(-2) times the label-free prediction is raised to that value.

    Args:
        factor: on the sums' geometric mean, before any policy is measured.
        windows: calibration windows in one set, for the gradients at the best measured policy; 0:
            no gradients.
        renewal: each time that this many further policies were measured without a better one, one
            more set of windows is used.
        cap: limits what one token contributes to D, nats (see `loss_changes`).
        weight: of D in the formula.
        steps: optimizer steps of the fit of the process.
        fewest: measured policies at which the calibration of intervals starts.

    Source: our own; the regression follows Rasmussen & Williams, "Gaussian Processes for Machine
        Learning" (2006), chapters 2 and 5.
    """

    needs_labels: ClassVar[bool] = False
    factor: Positive
    windows: Natural
    renewal: Count
    cap: Positive
    weight: Share
    steps: Count
    fewest: Count

    def fit(self, labels: Labels, inputs: PredictorInputs) -> None:
        space = inputs.features.space
        self.dense_nll = inputs.dense_nll
        self.sums = SiteSums(inputs.features, self.factor)
        self.process = _Process(SiteSumKernel(space))
        known = labels.nll.isfinite() & (labels.kept != space.units).any(1)
        # The logarithm of an excess that is by chance tiny or negative would dominate the fit.
        least = (self.sums(labels.kept)[0] - _FURTHEST).exp()
        excess = torch.maximum((labels.nll - self.dense_nll).double(), least)
        self._differentiate(labels, excess, known & labels.proposed, inputs)
        mean, x = self.sums(labels.kept[known])
        self.process.condition(x, excess[known].log() - mean, self.steps)
        self.widening = self.process.widening() if len(x) >= self.fewest else 1.0

    def _differentiate(
        self,
        labels: Labels,
        excess: Float[Tensor, " rows"],
        proposed: Bool[Tensor, " rows"],
        inputs: PredictorInputs,
    ) -> None:
        """Makes predictions relative to the best policy that the search has measured, if any."""
        if inputs.changes is None or not self.windows or not proposed.any():
            return
        best = int(labels.nll.masked_fill(~proposed, torch.inf).argmin())
        times = 1 + int(proposed[best + 1 :].sum()) // self.renewal
        changes = inputs.changes(labels.kept[best].tolist(), self.windows, times, self.cap)
        self.sums.start_from(labels.kept[best], float(excess[best]), changes, self.weight)

    def predict(self, kept: Int[Tensor, "batch sites"]) -> Prediction:
        with torch.no_grad():
            prior, x = self.sums(kept)
            mean, variance = self.process(x)
        excess = (prior + mean).clamp(max=_LARGEST).exp()
        std = self.widening * variance.sqrt() * excess
        dense = (kept == self.sums.units).all(1)
        return Prediction(
            (self.dense_nll + excess.masked_fill(dense, 0)).float(),
            std.masked_fill(dense, 0).float(),
        )

    def relaxed(self, kept: Float[Tensor, "batch sites"]) -> Float[Tensor, " batch"]:
        """The mean of `predict`, also for widths between whole units; differentiable in `kept`."""
        prior, x = self.sums(kept)
        mean = prior + self.process.weights(x) @ self.process.whitened_residuals
        return self.dense_nll + mean.clamp(max=_LARGEST).exp().float()

    def to(self, device: torch.device) -> None:
        self.sums.to(device)
        self.process.to(device)


class SiteSums(torch.nn.Module):
    """The sums over sites that need no labels, and the inputs of the Gaussian process.

    Args:
        features: of the sites.
        factor: on the sums' geometric mean.
    """

    units: Int[Tensor, " sites"]
    tables: Float[Tensor, "sums sites levels"]
    origin: Float[Tensor, " sums"]
    changes: Float[Tensor, "sites levels"] | None

    def __init__(self, features: SiteFeatures, factor: float) -> None:
        super().__init__()
        self.level, self.weight = math.log(factor), 0.0
        energy = features.errors * features.energy[:, None]
        tables = torch.stack([features.losses, energy]).double().clamp(min=0)
        self.register_buffer("units", features.space.units)
        self.register_buffer("tables", tables)
        self.register_buffer("origin", torch.zeros(len(tables), dtype=torch.double))
        self.register_buffer("changes", None)
        half = uniform(features.space, torch.tensor([0.5], dtype=torch.double))
        losses, errors = self._by_site(half).sum(-1)
        tables[1] *= losses / errors.clamp(min=_SMALLEST)

    def start_from(
        self,
        kept: Int[Tensor, " sites"],
        excess: float,
        changes: Float[Tensor, "sites levels"],
        weight: float,
    ) -> None:
        """Makes the prior mean relative to a measured policy (see `ExpectedLoss`).

        Args:
            kept: the policy.
            excess: its excess, nats per token.
            changes: estimated changes of the loss, nats per token.
            weight: of the changes, from 0 to 1.
        """
        self.origin = self._logs(self._by_site(kept[None].to(self.units)))[0]
        self.level, self.weight = math.log(excess), weight
        self.changes = changes.to(self.tables) / excess

    def forward(
        self, kept: Shaped[Tensor, "batch sites"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, "batch columns"]]:
        """The prior mean of the logarithm, and the columns that `SiteSumKernel` reads."""
        parts = self._by_site(kept)
        logs = self._logs(parts) - self.origin
        mean = self.level + (1 - self.weight) * logs.mean(1)
        if self.changes is not None:
            change = at_widths(self.changes, kept).sum(1).clamp(max=_LONGEST)
            mean = mean + self.weight * change
            logs = torch.cat([logs, change[:, None]], 1)
        shares = parts / parts.sum(-1, keepdim=True).clamp(min=_SMALLEST)
        removed = 1 - kept.double() / self.units
        return mean, torch.cat([logs, shares.mean(0), removed], 1)

    def _logs(self, parts: Float[Tensor, "sums batch sites"]) -> Float[Tensor, "batch sums"]:
        return parts.sum(-1).clamp(min=_SMALLEST).log().T

    def _by_site(self, kept: Shaped[Tensor, "batch sites"]) -> Float[Tensor, "sums batch sites"]:
        return torch.stack([at_widths(table, kept) for table in self.tables])


class _Process(GP):
    """A Gaussian process with constant noise, conditioned on the residuals of measured policies."""

    points: Float[Tensor, "rows columns"]
    inverse_cholesky: Float[Tensor, "rows rows"]
    whitened_residuals: Float[Tensor, " rows"]

    def __init__(self, kernel: SiteSumKernel) -> None:
        super().__init__()
        self.kernel, self.noise = kernel, _ConstantNoise()
        for name in ("points", "inverse_cholesky", "whitened_residuals"):
            self.register_buffer(name, torch.empty(0))
        self.double().requires_grad_(False)

    def forward(
        self, x: Float[Tensor, "batch columns"]
    ) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Mean and predictive variance; the variance includes noise."""
        variance = self.kernel.forward(x, x, diag=True) + self.noise.variance
        weights = self.weights(x)
        variance = variance - weights.square().sum(1)
        return weights @ self.whitened_residuals, variance.clamp(min=_SMALLEST)

    def weights(self, x: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch rows"]:
        """K L⁻ᵀ, with the covariances K of policies and measured ones; it gives the mean alone."""
        if not len(self.points):
            return x.new_empty(len(x), 0)
        return self.kernel.forward(x, self.points) @ self.inverse_cholesky.T

    def condition(
        self, x: Float[Tensor, "rows columns"], y: Float[Tensor, " rows"], steps: int
    ) -> None:
        """Fits the hyper-parameters, and conditions the process on all rows."""
        if not len(x):
            return
        maximise_likelihood(self, x, y, torch.ones_like(y), steps)
        covariance = to_dense(self.kernel(x)) + self.noise.variance * torch.eye(len(x)).to(x)
        self.inverse_cholesky = inverse_cholesky(covariance)
        self.points, self.whitened_residuals = x, self.inverse_cholesky @ y

    def widening(self) -> float:
        """Factor on standard deviations with which 90 % of leave-one-out intervals hold.

        Source: Rasmussen & Williams (2006), equations 5.10 to 5.12.
        """
        precision = self.inverse_cholesky.T @ self.inverse_cholesky
        error = (
            self.inverse_cholesky.T @ self.whitened_residuals
        ).abs() / precision.diagonal().sqrt()
        return float(interval_factor(error))


class _ConstantNoise(Noise):
    def __init__(self) -> None:
        super().__init__()
        register_log_parameter(self, "log_variance", 1, DEVIATION_OF_SUMS)
        self.log_variance.data.fill_(2 * math.log(_NOISE))

    @property
    def variance(self) -> Float[Tensor, "1"]:
        return self.log_variance.exp()

    def forward(self, x: Tensor, *, weights: Tensor, shape: torch.Size) -> DiagLinearOperator:
        return DiagLinearOperator(self.variance / weights)


_NOISE = 0.03  # initial standard deviation of the noise of log(excess)
_SMALLEST = 1e-9  # sum or variance; keeps logarithms and roots finite
_FURTHEST = 2.0  # largest log(label-free prediction / excess) in the fit
_LARGEST = 5.0  # logarithm of the excess
_LONGEST = 1.5  # logarithm of a change; the estimates mean little beyond
