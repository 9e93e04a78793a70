"""What an ensemble leaves over: a Gaussian process on the interactions between sites."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from ppf.progress import track
from ppf.space import Space


class Correction(NamedTuple):
    """What to add to the members' answers, and the variance that is left, noise included."""

    mean: Float[Tensor, " batch"]
    variance: Float[Tensor, " batch"]


class _Settings(NamedTuple):
    """Of the covariance: amplitudes of all parts, lengths of the distances, factors on features.

    The noise is a measurement's, of weight one: what all have, and what grows with the effects.
    """

    amplitudes: Float[Tensor, " parts"]
    lengths: Float[Tensor, " distances"]
    relevance: Float[Tensor, " features"]
    noise: Float[Tensor, "2"]


class GaussianProcess(nn.Module):
    """A smooth function of the policy, fitted to what the members of an ensemble leave over.

    Policies are compared by what they remove of each site and by their effects: what each of their
    cuts alone is predicted to cost. Their covariance sums Matérn functions of distances in both,
    summed over runs of layers; the product of their effects' roots; and the effect that their cuts
    have in common, Σ min(effect, effect′), which knows what every single unit does. The squares of
    the last two know all pairs of sites. Since what a cut costs depends on what else is gone, the
    common effect counts once more where the coarsest effects are alike, and with it the sites and
    pairs of sites that both have emptied. Noise has a part that grows steeply with a policy's
    summed effects: a few wrecked policies would mislead it about the others. The correction fades
    away from measured policies, goes through them where they are dense, and is nothing for the
    dense policy. Amplitudes, lengths, the noise and relevances, of each site in the finest effects
    and in products and common effects, maximise the marginal likelihood of what members leave over
    of policies that they have not seen.

    Args:
        effects: spans of the runs of layers over which effects are summed, as shares of the depth;
            one layer at least; from the finest, which has relevances, to the coarsest.
        shares: the same for the removed shares.
        rows: most policies that the likelihood looks at.
        steps: of its maximisation.
        huber: transformed error from which on a row counts less, as 1 / error.

    Source of the method: Rasmussen & Williams, "Gaussian Processes for Machine Learning" (2006),
        chapters 2, 4 and 5; sums of covariances as in Duvenaud et al. (NeurIPS 2011); min(a, b) is
        that of Brownian motion.
    """

    units: Int[Tensor, " sites"]
    effect_pool: Float[Tensor, "sites runs"]
    share_pool: Float[Tensor, "sites runs"]
    relevant: Bool[Tensor, " features"]
    effects: Float[Tensor, "sites levels"]
    points: Float[Tensor, "rows features"]
    coefficients: Float[Tensor, " rows"]
    whitener: Float[Tensor, "rows rows"]
    settings: Float[Tensor, " settings"]

    def __init__(
        self,
        space: Space,
        *,
        effects: Sequence[float],
        shares: Sequence[float],
        rows: int,
        steps: int,
        huber: float,
    ) -> None:
        super().__init__()
        self.rows, self.steps, self.huber = rows, steps, huber
        pools = [[_pool(space, span) for span in spans] for spans in (effects, shares)]
        self.runs = [pool.shape[1] for pool in sum(pools, [])]
        self.coarsest = len(effects) - 1
        for name, pool in zip(("effect_pool", "share_pool"), pools, strict=True):
            self.register_buffer(name, torch.cat(pool, 1))
        self.register_buffer("units", space.units)
        weighed = [True, *[False] * (len(self.runs) - 1), True, False]
        relevant = torch.tensor(weighed).repeat_interleave(torch.tensor(self.sizes))
        self.register_buffer("relevant", relevant, persistent=False)
        for name in _STATE:
            self.register_buffer(name, torch.empty(0))
        self.centre: Float[Tensor, " settings"] | None = None

    @property
    def fitted(self) -> bool:
        return self.coefficients.numel() > 0

    def forward(self, kept: Shaped[Tensor, "batch sites"]) -> Correction:
        """What to add to the members' answers.

        Widths may lie between whole units.
        """
        size = max(_IN_CACHE // len(self.points), 1) if kept.device.type == "cpu" else len(kept)
        parts = [self._told(points) for points in self._features(kept).split(size)]
        return Correction(*map(torch.cat, zip(*parts, strict=True)))

    def _told(self, points: Tensor) -> Correction:
        covariance, variance = self._prior(points, self.points, self.settings)
        explained = (covariance @ self.whitener.T).square().sum(1)
        left = (variance - explained).clamp(min=0) + self._noise(points, self.settings)
        return Correction(covariance @ self.coefficients, left)

    def fit(
        self,
        effects: Float[Tensor, "sites levels"],
        kept: Int[Tensor, "rows sites"],
        left: Float[Tensor, "members rows"],
        weights: Float[Tensor, "members rows"],
    ) -> Correction:
        """Finds the settings, and conditions on all rows.

        Returns what it would tell of each row had it not seen the row's fold, under settings found
        on the other half of the folds.

        Args:
            effects: predicted cost of keeping k units at a site and all elsewhere, [site, k].
            left: target minus answer.
            weights: of the rows; zero where the member must not see the row: one member of each.
        """
        self.effects = effects.double()
        unseen, whole = weights.argmin(0), weights.amax(0)
        target = left.gather(0, unseen[None])[0]
        told = torch.empty(2, len(kept), device=kept.device)
        for half in torch.arange(len(left), device=kept.device).chunk(2):
            others = ~torch.isin(unseen, half)
            self.settings = self._most_likely(kept[others], target[others], whole[others])
            for member in half:
                rows = unseen == member
                self.condition(kept, left[member], weights[member])
                told[:, rows] = torch.stack(self(kept[rows]))
        self.settings = self._most_likely(kept, target, whole)
        self.condition(kept, left.mean(0), whole)
        return Correction(*told)

    def condition(
        self,
        kept: Int[Tensor, "rows sites"],
        left: Float[Tensor, " rows"],
        weights: Float[Tensor, " rows"],
    ) -> None:
        """Goes by these rows from now on, under the settings that `fit` has found."""
        for name in _STATE:
            setattr(self, name, getattr(self, name).double())
        self.points, left = self._features(kept), left.double()
        covariance, _ = self._prior(self.points, self.points, self.settings)
        noise = self._noise(self.points, self.settings)
        self.whitener = _whitener(covariance, noise, self._robust(weights, left))
        self.coefficients = self.whitener.T @ (self.whitener @ left)
        for name in _STATE:
            setattr(self, name, getattr(self, name).float())

    def select_by_integrated_variance(
        self, kept: Int[Tensor, "policies sites"], count: int
    ) -> Int[Tensor, " chosen"]:
        """Which policies to measure, in turn, so that the mean variance over all falls most.

        Variances do not depend on what is measured, so all can be chosen beforehand.

        Source: Cohn, Ghahramani & Jordan, "Active learning with statistical models" (JAIR 1996).
        """
        settings, rows, whitener = (x.double() for x in (self.settings, self.points, self.whitener))
        points = self._features(kept).double()
        noise = self._noise(points, settings)
        known = self._prior(points, rows, settings)[0] @ whitener.T
        covariance = self._prior(points, points, settings)[0] - known @ known.T
        variance, chosen = covariance.diagonal(), kept.new_empty(0)
        for _ in track(range(min(count, len(kept))), f"Choosing {count} of {len(kept)} policies"):
            gains = covariance.square().sum(0) / (variance + noise)
            best = gains.index_fill(0, chosen, -1).argmax()
            column = covariance[best] / (variance[best] + noise[best]).sqrt()
            covariance.addr_(column, column, alpha=-1)
            chosen = torch.cat([chosen, best[None]])
        return chosen

    def _robust(self, weights: Tensor, left: Tensor) -> Tensor:
        """Weights of the rows, less where much is left over."""
        return weights * self.huber / left.abs().clamp(min=self.huber)

    def _noise(self, points: Tensor, settings: Tensor) -> Float[Tensor, " batch"]:
        """Variance of measurements of weight one: wrecked policies tell little of others."""
        same, growing = self._split(settings).noise
        roots = points.split(self.sizes, 1)[len(self.runs)]
        return same + growing * roots.square().sum(1) ** _GROWTH

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
        return torch.cat(
            [
                effects @ self.effect_pool.to(effects),
                removed @ self.share_pool.to(effects),
                effects.clamp(min=_SMALLEST).sqrt(),
                (1 - kept).clamp(min=0).to(effects),
            ],
            1,
        )

    @property
    def sizes(self) -> list[int]:
        """Features of each part: the distances', roots of effects, emptied sites."""
        return [*self.runs, len(self.units), len(self.units)]

    def _prior(
        self, points: Tensor, rows: Tensor, settings: Tensor
    ) -> tuple[Float[Tensor, "batch rows"], Float[Tensor, " batch"]]:
        """Covariances with the rows, and variances, given that the dense policy is known."""
        dense = self._features(self.units[None]).to(rows)
        covariance = self._covariance(points, torch.cat([rows, dense]), settings)
        to_rows, to_dense = covariance.split([len(rows), 1], 1)
        share = to_dense / self._variance(dense, settings)
        known = share @ self._covariance(dense, rows, settings)
        return to_rows - known, self._variance(points, settings) - (share * to_dense)[:, 0]

    def _covariance(
        self, left: Tensor, right: Tensor, settings: Tensor
    ) -> Float[Tensor, "batch rows"]:
        amplitudes, lengths, relevance, _ = self._split(settings)
        parts = zip(*(x.mul(relevance).split(self.sizes, 1) for x in (left, right)), strict=True)
        *near, roots, emptied = parts
        root, root_pair, cut, cut_pair, alike, one, two = amplitudes[len(near) :]
        product, gone = (a @ b.T for a, b in (roots, emptied))
        common = _common(*(x.square() for x in roots))
        covariance = product * (root + root_pair * product) + common * (cut + cut_pair * common)
        for number, (a, b) in enumerate(near):
            scale = amplitudes[number]
            if number == self.coarsest:
                scale = scale + alike * common + gone * (one + two * gone)
            covariance = covariance + scale * _matern(a / lengths[number], b / lengths[number])
        return covariance

    def _variance(self, points: Tensor, settings: Tensor) -> Float[Tensor, " batch"]:
        """The diagonal of the covariance."""
        amplitudes, lengths, relevance, _ = self._split(settings)
        whole, gone = _norms(points * relevance, self.sizes)[len(lengths) :]
        root, root_pair, cut, cut_pair, alike, one, two = amplitudes[len(lengths) :]
        effects = whole * (root + cut + alike + (root_pair + cut_pair) * whole)
        return amplitudes[: len(lengths)].sum() + effects + gone * (one + two * gone)

    def _split(self, settings: Tensor) -> _Settings:
        near = len(self.runs)
        parts = [near + _PRODUCTS, near, 2, int(self.relevant.sum())]
        amplitudes, lengths, noise, relevant = settings.split(parts)
        relevance = torch.ones(len(self.relevant)).to(settings)
        return _Settings(
            amplitudes, lengths, relevance.masked_scatter(self.relevant, relevant), noise
        )

    def _most_likely(
        self,
        kept: Int[Tensor, "rows sites"],
        target: Float[Tensor, " rows"],
        weights: Float[Tensor, " rows"],
    ) -> Float[Tensor, " settings"]:
        """Settings of largest marginal likelihood, under a log-normal prior around `centre`."""
        some = torch.linspace(0, len(kept) - 1, min(self.rows, len(kept))).long()
        points, target = self._features(kept[some]).double(), target[some].double()
        weights = self._robust(weights[some], target)
        centre = self._usual(points, target) if self.centre is None else self.centre.to(points)
        prior = torch.full_like(centre, _PRIOR)
        prior[-int(self.relevant.sum()) :] = _PRIOR_OF_RELEVANCE
        logs = torch.zeros_like(centre, requires_grad=True)
        optimizer = torch.optim.Adam([logs], lr=_RATE)
        with torch.enable_grad():
            for _ in range(self.steps):
                settings = centre * logs.exp()
                covariance, _ = self._prior(points, points, settings)
                noise = self._noise(points, settings) / weights
                factor = torch.linalg.cholesky(covariance + noise.diag())
                whitened = torch.linalg.solve_triangular(factor, target[:, None], upper=False)
                surprise = whitened.square().sum() / 2 + factor.diagonal().log().sum()
                optimizer.zero_grad()
                (surprise + (logs / prior).square().sum() / 2).backward()
                optimizer.step()
        return centre * logs.detach().exp()

    def _usual(
        self, points: Float[Tensor, "rows features"], target: Float[Tensor, " rows"]
    ) -> Float[Tensor, " settings"]:
        """A quarter of the target's variance is noise and all parts share the rest.

        Lengths are the median distances, relevances one.
        """
        near = points.split(self.sizes, 1)[: len(self.runs)]
        whole, gone = (n.mean() for n in _norms(points, self.sizes)[len(near) :])
        variance = target.square().mean().clamp(min=_SMALLEST**2)
        each = 0.75 * variance / (len(near) + _PRODUCTS)
        once = each / gone.clamp(min=1 / len(points))
        first, second = (each / n.clamp(min=_SMALLEST) for n in (whole, whole.square()))
        lengths = [torch.pdist(part).median().clamp(min=_SMALLEST) for part in near]
        products = [first, second, first, second, first, once, once]
        noise = [variance / 8, variance / 8 / whole.clamp(min=_SMALLEST) ** _GROWTH]
        rest = [each] * len(near) + [*products, *lengths, *noise]
        return torch.cat([torch.stack(rest), torch.ones(int(self.relevant.sum())).to(points)])

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Takes the number of rows from the checkpoint."""
        for name in _STATE:
            setattr(self, name, torch.empty_like(state[prefix + name]))
        super()._load_from_state_dict(state, prefix, *rest)


def _whitener(
    covariance: Float[Tensor, "rows rows"],
    noise: Float[Tensor, " rows"],
    weights: Float[Tensor, " rows"],
) -> Float[Tensor, "rows rows"]:
    """The root of the inverse covariance of measurements, rows of no weight left out."""
    roots = weights.sqrt()
    factor = torch.linalg.cholesky(roots[:, None] * covariance * roots + noise.diag())
    return torch.linalg.solve_triangular(factor, roots.diag(), upper=False)


def _matern(
    a: Float[Tensor, "batch features"], b: Float[Tensor, "rows features"]
) -> Float[Tensor, "batch rows"]:
    """The Matérn function of smoothness 5/2 of the distances."""
    a, b = 5**0.5 * a, 5**0.5 * b
    norms = a.square().sum(1, keepdim=True), b.square().sum(1)
    squares = (torch.addmm(norms[1], a, b.T, alpha=-2) + norms[0]).clamp(min=_SMALLEST)
    distances = squares.sqrt()
    return torch.add(1 + distances, squares, alpha=1 / 3) * torch.exp(-distances)


def _common(
    a: Float[Tensor, "batch sites"], b: Float[Tensor, "rows sites"]
) -> Float[Tensor, "batch rows"]:
    """Sums of the lesser of both, for numbers that are not negative."""
    return (a.sum(1, keepdim=True) + b.sum(1) - torch.cdist(a, b, p=1)) / 2


def _norms(points: Tensor, sizes: list[int]) -> list[Float[Tensor, " rows"]]:
    """The squared norm of each part."""
    return [part.square().sum(1) for part in points.split(sizes, 1)]


def _pool(space: Space, span: float) -> Float[Tensor, "sites runs"]:
    """One where a site belongs to a run: a kind's sites in so many neighbouring layers."""
    layers = max(1, round(span * space.layers))
    run = torch.tensor([site.layer // layers for site in space.sites])
    kind = torch.tensor([space.kinds.index(site.kind) for site in space.sites])
    return F.one_hot(kind * (int(run.max()) + 1) + run).float()


_IN_CACHE = 1 << 17  # covariances worked on at a time by a CPU
_PRODUCTS = 7  # roots of effects, common effects, both squared, alike ones, emptied sites, pairs
_GROWTH = 8  # of the noise with a policy's summed effects
_STATE = ("effects", "points", "coefficients", "whitener", "settings")
_SMALLEST = 1e-6  # distance between policies
_RATE = 0.1  # of a log-setting, in one step
_PRIOR = 2.0  # standard deviation of the log-settings,
_PRIOR_OF_RELEVANCE = 0.5
