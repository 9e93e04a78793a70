"""Exact budgets: from wished-for widths to a policy that removes what was asked."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ppf.space.sites import Space

Bounds = tuple[Int[Tensor, "batch sites"], Int[Tensor, "batch sites"]]
"""Fewest and most units to keep."""

_HALVINGS = 52  # of an interval of shares: down to the resolution of float64


def project(
    space: Space,
    wanted: Float[Tensor, "batch sites"],
    ratio: Float[Tensor, " batch"],
    bounds: Bounds | None = None,
) -> Int[Tensor, "batch sites"]:
    """The policies nearest to `wanted` that remove at least `ratio`, and barely more.

    All units compete for removal by how far they lie above their site's wish, as a share of the
    site; the cut falls where the budget is met. Costly units (attention groups) are then fixed, and
    the cut is made again among the cheapest ones (MLP blocks), so the excess stays below one
    cheapest unit wherever the space has enough of them.

    Args:
        wanted: units to keep, real numbers; outside [0, units] they only order the units.
        ratio: pruning ratios in [0, 1).
        bounds: fewest and most units to keep. A row whose bounds leave no room for its ratio is
            freed of them.
    """
    units, params = space.units.to(wanted.device).double(), space.params.to(wanted.device).double()
    target = (ratio.double() * space.total - 1e-6).ceil()[:, None]
    lower, upper = _room(units, params, target, bounds)
    # Unit j lies (j + 1/2 - wanted) / units above the wish: a cut at c keeps ⌊c · units + start⌋.
    start = wanted.double() + 0.5 - units * _spread(len(space), wanted.device)

    kept = _cut(start, units, params, target, lower, upper)
    if space.params.unique().numel() > 1:
        kept = kept + _overshooting(kept, start, units, params, target, lower, upper)
        cheap = params == params.min()
        lower, upper = lower.where(cheap, kept), upper.where(cheap, kept)
        kept = _cut(start, units, params, target, lower, upper)
    return kept.long()


def uniform(space: Space, ratio: Float[Tensor, " batch"]) -> Int[Tensor, "batch sites"]:
    """The same share of every site, as nearly as units and budget allow."""
    share = (1 - ratio.double())[:, None]
    return project(space, share * space.units.to(ratio.device), ratio)


def _spread(sites: int, device: torch.device) -> Float[Tensor, " sites"]:
    """Tiny offsets that break ties evenly over the depth: the golden ratio's sequence."""
    return (
        1e-6 * (torch.arange(sites, device=device, dtype=torch.double) * 0.6180339887498949).frac()
    )


def _room(
    units: Tensor, params: Tensor, target: Tensor, bounds: Bounds | None
) -> tuple[Tensor, Tensor]:
    """The bounds, or [0, units] for the rows where they cannot hold."""
    shape = (len(target), len(units))
    nothing, everything = torch.zeros_like(units).expand(shape), units.expand(shape)
    if bounds is None:
        return nothing, everything
    lower, upper = (bound.double() for bound in bounds)
    most, least = ((units - bound) @ params for bound in (lower, upper))
    holds = (most[:, None] >= target) & (least[:, None] < target + params.min())
    return torch.where(holds, lower, nothing), torch.where(holds, upper, everything)


def _cut(
    start: Float[Tensor, "batch sites"],
    units: Float[Tensor, " sites"],
    params: Float[Tensor, " sites"],
    target: Float[Tensor, "batch 1"],
    lower: Float[Tensor, "batch sites"],
    upper: Float[Tensor, "batch sites"],
) -> Float[Tensor, "batch sites"]:
    """Removes units, farthest above their wish first, until `target` parameters are gone."""

    def keep(share: Tensor) -> Tensor:
        return torch.addcmul(start, share, units).clamp_(lower, upper).long().double()

    budget = (units * params).sum() - target  # parameters that may stay
    low = (-start / units).amin(1, keepdim=True) - 1
    high = ((units + 1 - start) / units).amax(1, keepdim=True)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        enough = (keep(middle) @ params)[:, None] <= budget
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)

    most = keep(high)
    tied = most - keep(
        low
    )  # one unit at most, and only where wishes tie: the first sites yield first
    cost = tied * params
    over = (most @ params)[:, None] - budget
    return most - tied * (cost.cumsum(1) - cost < over)


def _overshooting(
    kept: Tensor,
    start: Tensor,
    units: Tensor,
    params: Tensor,
    target: Tensor,
    lower: Tensor,
    upper: Tensor,
) -> Bool[Tensor, "batch sites"]:
    """The costly unit removed last, where it alone overshoots and cheap units can stand in."""
    cheap = params == params.min()
    gone = (units - kept) * params
    share = torch.where((kept < upper) & ~cheap, (kept + 1 - start) / units, torch.inf)
    last = torch.nn.functional.one_hot(share.argmin(1), len(units)).bool() & share.isfinite()

    costly = (gone * ~cheap).sum(1, keepdim=True)
    forced, available = (
        ((units - bound) * params * cheap).sum(1, keepdim=True) for bound in (upper, lower)
    )
    stand_in = available >= target - costly + params
    return last & (costly + forced >= target + params.min()) & stand_in
