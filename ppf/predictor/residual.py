"""What an ensemble leaves over: a Gaussian process on the interactions between sites."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from ppf.space import Space


class GaussianProcess(nn.Module):
    """A smooth function of the policy for each member, fitted to what that member leaves over.

    A policy's coordinates are its effects: what each of its cuts alone is predicted to cost. The
    covariance of two policies sums a quadratic function of each site's effect alone, and Gaussian
    functions of their distance, in the effects themselves and in those summed over runs of layers.
    The correction fades away from measured policies, and goes through them where they are dense.
    Amplitudes, lengths and the noise maximise the marginal likelihood of what members leave over
    of policies that they have not seen; each member then has coefficients of its own.

    Args:
        spans: of the runs of layers over which effects are summed, as shares of the depth; one
            layer at least.
        length: of a site's own function, in standard deviations of its effect.
        rows: most policies that the likelihood looks at.
        steps: of its maximisation.
        huber: transformed error from which on a row counts less, as 1 / error.

    Source of the method: Rasmussen & Williams, "Gaussian Processes for Machine Learning" (2006),
        chapters 2 and 5; sums of covariances as in Duvenaud et al. (NeurIPS 2011).
    """

    pool: Float[Tensor, "sites runs"]
    effects: Float[Tensor, "sites levels"]
    scales: Float[Tensor, "2 sites"]
    points: Float[Tensor, "rows sites"]
    coefficients: Float[Tensor, "members rows"]
    whitener: Float[Tensor, "rows rows"]
    settings: Float[Tensor, " settings"]

    def __init__(
        self,
        space: Space,
        *,
        spans: Sequence[float],
        length: float,
        rows: int,
        steps: int,
        huber: float,
    ) -> None:
        super().__init__()
        self.length, self.rows, self.steps, self.huber = length, rows, steps, huber
        pools = [_pool(space, span) for span in spans]
        self.runs = [pool.shape[1] for pool in pools]
        self.register_buffer("pool", torch.cat(pools, 1))
        for name in _STATE:
            self.register_buffer(name, torch.empty(0))

    @property
    def fitted(self) -> bool:
        return self.coefficients.numel() > 0

    def forward(
        self, kept: Shaped[Tensor, "batch sites"]
    ) -> tuple[Float[Tensor, "members batch"], Float[Tensor, " batch"]]:
        """What to add to each member's answer, and the variance that is left, noise included.

        Widths may lie between whole units.
        """
        points = self._coordinates(kept)
        covariance = self._covariance(points, self.points, self.settings)
        explained = (covariance @ self.whitener.T).square().sum(1)
        return self.coefficients @ covariance.T, self._variance(points, self.settings) - explained

    def fit(
        self,
        effects: Float[Tensor, "sites levels"],
        kept: Int[Tensor, "rows sites"],
        left: Float[Tensor, "members rows"],
        weights: Float[Tensor, "members rows"],
    ) -> Float[Tensor, " rows"]:
        """Fits all members at once; returns each row's variance without what its fold tells.

        Args:
            effects: predicted cost of keeping k units at a site and all elsewhere, [site, k].
            left: target minus answer.
            weights: of the rows; zero where the member must not see the row: one member of each.
        """
        self.effects = effects.double()
        points = self._coordinates(kept)
        spread, mean = torch.std_mean(points, 0)
        self.scales = torch.stack([mean, self.length * spread.clamp(min=_SMALLEST)])
        left, unseen = left.double(), weights.argmin(0)
        weights = weights * self.huber / left.abs().clamp(min=self.huber)
        target = left.gather(0, unseen[None])[0]
        some = torch.linspace(0, len(kept) - 1, min(self.rows, len(kept))).long()
        average = weights.sum(0, keepdim=True) / (len(weights) - 1)
        settings = self._most_likely(points[some], target[some], average[0, some])

        covariance = self._covariance(points, points, settings)
        roots = torch.cat([weights, average]).sqrt()
        noise = settings[-1] * torch.eye(len(kept)).to(covariance)
        factors = torch.linalg.cholesky(roots[:, :, None] * covariance * roots[:, None] + noise)
        scaled = (roots[:-1] * left)[..., None]
        coefficients = roots[:-1] * torch.cholesky_solve(scaled, factors[:-1])[..., 0]
        inverse = torch.linalg.solve_triangular(factors, torch.diag_embed(roots), upper=False)
        explained = (inverse[:-1] @ covariance).square().sum(1).gather(0, unseen[None])[0]

        self.points, self.settings = points, settings
        self.coefficients, self.whitener = coefficients, inverse[-1]
        for name in _STATE:
            setattr(self, name, getattr(self, name).float())
        return (self._variance(points, settings) - explained).float()

    def _coordinates(self, kept: Tensor) -> Float[Tensor, "batch sites"]:
        below = kept.T.long()
        coordinates = self.effects.gather(1, below)
        if kept.is_floating_point():
            above = self.effects.gather(1, (below + 1).clamp(max=self.effects.shape[1] - 1))
            coordinates = torch.lerp(coordinates, above, (kept.T - below).to(above))
        return coordinates.T

    def _alone(self, points: Tensor) -> Float[Tensor, "batch functions"]:
        """What sites' own functions are made of: a line and a parabola, level at their ends."""
        mean, spread = self.scales.to(points)
        lines = ((points - mean) / spread).clamp(-_REACH, _REACH)
        return torch.cat([lines, lines.square() / 2**0.5], 1) / points.shape[1] ** 0.5

    def _summed(self, points: Tensor) -> tuple[Float[Tensor, "batch runs"], ...]:
        """Effects summed over each span's runs."""
        return (points @ self.pool.to(points)).split(self.runs, 1)

    def _covariance(
        self, left: Tensor, right: Tensor, settings: Tensor
    ) -> Float[Tensor, "batch rows"]:
        amplitudes, lengths, own, _ = self._split(settings)
        covariance = own * self._alone(left) @ self._alone(right).T
        parts = zip(self._summed(left), self._summed(right), amplitudes, lengths, strict=True)
        for a, b, amplitude, length in parts:
            a, b = a / length, b / length
            norms = a.square().sum(1, keepdim=True) / 2, b.square().sum(1) / 2
            exponent = torch.addmm(amplitude.log() - norms[1], a, b.T) - norms[0]
            covariance = covariance + exponent.exp()
        return covariance

    def _variance(self, points: Tensor, settings: Tensor) -> Float[Tensor, " batch"]:
        """Before anything is measured, noise included."""
        amplitudes, _, own, noise = self._split(settings)
        return own * self._alone(points).square().sum(1) + amplitudes.sum() + noise

    def _split(self, settings: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Amplitudes and lengths of the spans, the amplitude of sites' own functions, the noise."""
        spans = len(self.runs)
        return settings[:spans], settings[spans : 2 * spans], settings[-2], settings[-1]

    def _most_likely(
        self,
        points: Float[Tensor, "rows sites"],
        target: Float[Tensor, " rows"],
        weights: Float[Tensor, " rows"],
    ) -> Float[Tensor, " settings"]:
        """Settings of largest marginal likelihood, under a broad log-normal prior.

        Its centre: variances a quarter of the target's, lengths the median distances.
        """
        variance = target.square().mean().clamp(min=_SMALLEST**2) / 4
        lengths = [torch.pdist(summed).median() for summed in self._summed(points)]
        centre = variance.expand(2 * len(lengths) + 2).clone()
        centre[len(lengths) : -2] = torch.stack(lengths).clamp(min=_SMALLEST)
        logs = torch.zeros_like(centre, requires_grad=True)
        optimizer = torch.optim.Adam([logs], lr=_RATE)
        with torch.enable_grad():
            for _ in range(self.steps):
                settings = centre * logs.exp()
                covariance = self._covariance(points, points, settings)
                factor = torch.linalg.cholesky(covariance + torch.diag(settings[-1] / weights))
                whitened = torch.linalg.solve_triangular(factor, target[:, None], upper=False)
                surprise = whitened.square().sum() / 2 + factor.diagonal().log().sum()
                optimizer.zero_grad()
                (surprise + logs.square().sum() / (2 * _PRIOR**2)).backward()
                optimizer.step()
        return centre * logs.detach().exp()

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Takes the number of rows from the checkpoint."""
        for name in _STATE:
            setattr(self, name, torch.empty_like(state[prefix + name]))
        super()._load_from_state_dict(state, prefix, *rest)


def _pool(space: Space, span: float) -> Float[Tensor, "sites runs"]:
    """One where a site belongs to a run: a kind's sites in so many neighbouring layers."""
    layers = max(1, round(span * space.layers))
    run = torch.tensor([site.layer // layers for site in space.sites])
    kind = torch.tensor([space.kinds.index(site.kind) for site in space.sites])
    return F.one_hot(kind * (int(run.max()) + 1) + run).float()


_STATE = ("effects", "scales", "points", "coefficients", "whitener", "settings")
_SMALLEST = 1e-6  # distance between policies
_REACH = 1.5  # lengths beyond which a site's own function is constant
_RATE = 0.1  # of a log-setting, in one step
_PRIOR = 2.0  # standard deviation of the log-settings
