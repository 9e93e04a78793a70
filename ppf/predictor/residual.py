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

    Policies are compared by what they remove of each site and by their effects: what each of their
    cuts alone is predicted to cost. Their covariance sums Matérn functions of distances in both,
    summed over runs of layers; a quadratic function of each site's effect alone, with a jump where
    it is emptied; and the squared products of two policies, which know all pairs of sites. The
    correction fades away from measured policies, and goes through them where they are dense.
    Amplitudes, lengths and the noise maximise the marginal likelihood of what members leave over of
    policies that they have not seen; each member then has coefficients of its own.

    Args:
        effects: spans of the runs of layers over which effects are summed, as shares of the depth;
            one layer at least.
        shares: the same for the removed shares.
        length: of a site's own function, in standard deviations of its effect.
        rows: most policies that the likelihood looks at.
        steps: of its maximisation.
        huber: transformed error from which on a row counts less, as 1 / error.

    Source of the method: Rasmussen & Williams, "Gaussian Processes for Machine Learning" (2006),
        chapters 2, 4 and 5; sums of covariances as in Duvenaud et al. (NeurIPS 2011).
    """

    units: Int[Tensor, " sites"]
    effect_pool: Float[Tensor, "sites runs"]
    share_pool: Float[Tensor, "sites runs"]
    effects: Float[Tensor, "sites levels"]
    scales: Float[Tensor, "2 sites"]
    points: Float[Tensor, "rows features"]
    coefficients: Float[Tensor, "members rows"]
    whitener: Float[Tensor, "rows rows"]
    settings: Float[Tensor, " settings"]

    def __init__(
        self,
        space: Space,
        *,
        effects: Sequence[float],
        shares: Sequence[float],
        length: float,
        rows: int,
        steps: int,
        huber: float,
    ) -> None:
        super().__init__()
        self.length, self.rows, self.steps, self.huber = length, rows, steps, huber
        pools = [[_pool(space, span) for span in spans] for spans in (effects, shares)]
        self.runs = [pool.shape[1] for pool in sum(pools, [])]
        for name, pool in zip(("effect_pool", "share_pool"), pools, strict=True):
            self.register_buffer(name, torch.cat(pool, 1))
        self.register_buffer("units", space.units)
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
        size = max(_IN_CACHE // len(self.points), 1) if kept.device.type == "cpu" else len(kept)
        parts = [self._told(points) for points in self._features(kept).split(size)]
        return torch.cat([part[0] for part in parts], 1), torch.cat([part[1] for part in parts])

    def _told(self, points: Tensor) -> tuple[Tensor, Tensor]:
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
        spread, mean = torch.std_mean(self._effects(kept), 0)
        self.scales = torch.stack([mean, self.length * spread.clamp(min=_SMALLEST)])
        points = self._features(kept)
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

    def _effects(self, kept: Tensor) -> Float[Tensor, "batch sites"]:
        below = kept.T.long()
        effects = self.effects.gather(1, below)
        if kept.is_floating_point():
            above = self.effects.gather(1, (below + 1).clamp(max=self.effects.shape[1] - 1))
            effects = torch.lerp(effects, above, (kept.T - below).to(above))
        return effects.T

    def _features(self, kept: Tensor) -> Float[Tensor, "batch features"]:
        """All that policies are compared by, in the order of `sizes`."""
        effects = self._effects(kept)
        removed = 1 - kept.to(effects) / self.units
        mean, spread = self.scales.to(effects)
        lines = ((effects - mean) / spread).clamp(-_REACH, _REACH)
        return torch.cat(
            [
                effects @ self.effect_pool.to(effects),
                removed @ self.share_pool.to(effects),
                lines,
                lines.square() / 2**0.5,
                (1 - kept).clamp(min=0).to(effects),
                removed,
                effects.clamp(min=_SMALLEST).sqrt(),
            ],
            1,
        )

    @property
    def sizes(self) -> list[int]:
        """Features of each part of the covariance: the distances' first, then the products'."""
        sites = len(self.units)
        return [*self.runs, 2 * sites, sites, sites, sites]

    def _covariance(
        self, left: Tensor, right: Tensor, settings: Tensor
    ) -> Float[Tensor, "batch rows"]:
        amplitudes, lengths = self._split(settings)
        parts = list(zip(left.split(self.sizes, 1), right.split(self.sizes, 1), strict=True))
        covariance = torch.zeros((), dtype=left.dtype, device=left.device)
        for (a, b), amplitude, length in zip(parts, amplitudes, lengths, strict=False):
            covariance = covariance + amplitude * _matern(a / length, b / length)
        products = zip(parts[len(lengths) :], amplitudes[len(lengths) :], _DEGREES, strict=True)
        for (a, b), amplitude, degree in products:
            covariance = covariance + amplitude * (a @ b.T) ** degree
        return covariance

    def _variance(self, points: Tensor, settings: Tensor) -> Float[Tensor, " batch"]:
        """Before anything is measured, noise included."""
        amplitudes, lengths = self._split(settings)
        own = [part.square().sum(1) for part in points.split(self.sizes, 1)[len(lengths) :]]
        products = zip(own, amplitudes[len(lengths) :], _DEGREES, strict=True)
        constant = amplitudes[: len(lengths)].sum() + settings[-1]
        return constant + sum(amplitude * norm**degree for norm, amplitude, degree in products)

    def _split(self, settings: Tensor) -> tuple[Tensor, Tensor]:
        """Amplitudes of all parts, and lengths of those that look at distances."""
        return settings[: len(self.sizes)], settings[len(self.sizes) : -1]

    def _most_likely(
        self,
        points: Float[Tensor, "rows features"],
        target: Float[Tensor, " rows"],
        weights: Float[Tensor, " rows"],
    ) -> Float[Tensor, " settings"]:
        """Settings of largest marginal likelihood, under a broad log-normal prior.

        Its centre: a quarter of the target's variance is noise and all parts share the rest;
        lengths are the median distances.
        """
        parts = points.split(self.sizes, 1)
        near, far = parts[: len(self.runs)], parts[len(self.runs) :]
        variance = target.square().mean().clamp(min=_SMALLEST**2)
        each = 0.75 * variance / len(parts)
        norms = [
            part.square().sum(1).mean() ** degree
            for part, degree in zip(far, _DEGREES, strict=True)
        ]
        amplitudes = [each] * len(near) + [each / n.clamp(min=_SMALLEST) for n in norms]
        lengths = [torch.pdist(part).median().clamp(min=_SMALLEST) for part in near]
        centre = torch.stack([*amplitudes, *lengths, variance / 4])
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


def _matern(
    a: Float[Tensor, "batch features"], b: Float[Tensor, "rows features"]
) -> Float[Tensor, "batch rows"]:
    """The Matérn function of smoothness 5/2 of the distances."""
    a, b = 5**0.5 * a, 5**0.5 * b
    norms = a.square().sum(1, keepdim=True), b.square().sum(1)
    squares = (torch.addmm(norms[1], a, b.T, alpha=-2) + norms[0]).clamp(min=_SMALLEST)
    distances = squares.sqrt()
    return torch.add(1 + distances, squares, alpha=1 / 3) * torch.exp(-distances)


def _pool(space: Space, span: float) -> Float[Tensor, "sites runs"]:
    """One where a site belongs to a run: a kind's sites in so many neighbouring layers."""
    layers = max(1, round(span * space.layers))
    run = torch.tensor([site.layer // layers for site in space.sites])
    kind = torch.tensor([space.kinds.index(site.kind) for site in space.sites])
    return F.one_hot(kind * (int(run.max()) + 1) + run).float()


_IN_CACHE = 1 << 17  # covariances worked on at a time by a CPU
_DEGREES = (1, 1, 2, 2)  # of the products: own functions, emptied sites, shares, effects' roots
_STATE = ("effects", "scales", "points", "coefficients", "whitener", "settings")
_SMALLEST = 1e-6  # distance between policies
_REACH = 1.5  # lengths beyond which a site's own function is constant
_RATE = 0.1  # of a log-setting, in one step
_PRIOR = 2.0  # standard deviation of the log-settings
