"""Exact budgets: from wished-for widths to a policy that removes what was asked."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ppf.space.sites import Space

Bounds = tuple[Int[Tensor, "batch sites"], Int[Tensor, "batch sites"]]
"""Fewest and most units to keep."""

_BITS = 42  # of an interval of shares, far below `_spread`
_AT_ONCE = 4096  # numbers that take hardly longer to work out than one


def project(
    space: Space,
    wanted: Float[Tensor, "batch sites"],
    ratio: Float[Tensor, " batch"],
    bounds: Bounds | None = None,
) -> Int[Tensor, "batch sites"]:
    """The policies nearest to `wanted` that save at least `ratio` of the cost, and barely more.

    All units compete for removal by how far they lie above their site's wish, as a share of the
    site; the cut falls where the budget is met. Costly units (attention groups) are then fixed, and
    the cut is made again among the cheapest ones (MLP blocks), so the excess stays below one
    cheapest unit wherever the space has enough of them. Sites that the budget does not charge
    stay whole.

    Args:
        wanted: units to keep, real numbers; outside [0, units] they only order the units.
        ratio: pruning ratios in [0, 1).
        bounds: fewest and most units to keep. A row whose bounds leave no room for its ratio is
            freed of them.
    """
    if not space.cost.all():
        charged = space.cost.to(wanted.device) > 0
        kept = space.units.to(wanted.device).repeat(len(wanted), 1)
        within = None if bounds is None else (bounds[0][:, charged], bounds[1][:, charged])
        kept[:, charged] = project(space.part(charged), wanted[:, charged], ratio, within)
        return kept

    units, cost = space.units.to(wanted.device).double(), space.cost.to(wanted.device).double()
    target = (ratio.double() * (units @ cost) - 1e-6).ceil()[:, None]
    lower, upper = _room(units, cost, target, bounds)
    # Unit j lies (j + 1/2 - wanted) / units above the wish: a cut at c keeps ⌊c · units + start⌋.
    start = wanted.double() + 0.5 - units * _spread(len(space), wanted.device)

    kept = _cut(start, units, cost, target, lower, upper)
    if space.cost.unique().numel() > 1:
        kept = kept + _overshooting(kept, start, units, cost, target, lower, upper)
        cheap = cost == cost.min()
        lower, upper = lower.where(cheap, kept), upper.where(cheap, kept)
        kept = _cut(start, units, cost, target, lower, upper)
    return kept.long()


def uniform(space: Space, ratio: Float[Tensor, " batch"]) -> Int[Tensor, "batch sites"]:
    """The same share of every site, as nearly as units and budget allow."""
    return project(space, space.shares(ratio), ratio)


def _spread(sites: int, device: torch.device) -> Float[Tensor, " sites"]:
    """Tiny offsets that break ties evenly over the depth: the golden ratio's sequence."""
    return (
        1e-6 * (torch.arange(sites, device=device, dtype=torch.double) * 0.6180339887498949).frac()
    )


def _room(
    units: Tensor, cost: Tensor, target: Tensor, bounds: Bounds | None
) -> tuple[Tensor, Tensor]:
    """The bounds, or [0, units] for the rows where they cannot hold."""
    shape = (len(target), len(units))
    nothing, everything = torch.zeros_like(units).expand(shape), units.expand(shape)
    if bounds is None:
        return nothing, everything
    lower, upper = (bound.double() for bound in bounds)
    most, least = ((units - bound) @ cost for bound in (lower, upper))
    holds = (most[:, None] >= target) & (least[:, None] < target + cost.min())
    return torch.where(holds, lower, nothing), torch.where(holds, upper, everything)


def _cut(
    start: Float[Tensor, "batch sites"],
    units: Float[Tensor, " sites"],
    cost: Float[Tensor, " sites"],
    target: Float[Tensor, "batch 1"],
    lower: Float[Tensor, "batch sites"],
    upper: Float[Tensor, "batch sites"],
) -> Float[Tensor, "batch sites"]:
    """Removes units, farthest above their wish first, until `target` of the cost is gone."""

    def keep(share: Float[Tensor, "batch cuts"]) -> Float[Tensor, "cuts batch sites"]:
        shares = share.T[..., None]
        return torch.addcmul(start, shares, units).clamp_(lower, upper).floor_()

    budget = (units * cost).sum() - target  # what may stay
    low = (-start / units).amin(1, keepdim=True) - 1
    high = ((units + 1 - start) / units).amax(1, keepdim=True)
    # The interval is halved again and again; small batches see several halvings ahead.
    bits = max(1, (_AT_ONCE // (start.numel() + 1)).bit_length() - 1)
    steps = torch.arange(2**bits + 1, device=start.device, dtype=torch.double) / 2**bits
    for _ in range(-(-_BITS // bits)):
        cuts = torch.lerp(low, high, steps)
        stays = (keep(cuts[:, 1:-1]) @ cost).T
        last = (stays <= budget).sum(1, keepdim=True)
        low, high = cuts.gather(1, last), cuts.gather(1, last + 1)

    (least,), (most,) = keep(low), keep(high)
    tied = most - least  # one unit at most, and only where wishes tie: the first sites yield first
    spent = tied * cost
    over = (most @ cost)[:, None] - budget
    return most - tied * (spent.cumsum(1) - spent < over)


def _overshooting(
    kept: Tensor,
    start: Tensor,
    units: Tensor,
    cost: Tensor,
    target: Tensor,
    lower: Tensor,
    upper: Tensor,
) -> Bool[Tensor, "batch sites"]:
    """The costly unit removed last, where it alone overshoots and cheap units can stand in."""
    cheap = cost == cost.min()
    gone = (units - kept) * cost
    share = torch.where((kept < upper) & ~cheap, (kept + 1 - start) / units, torch.inf)
    last = torch.nn.functional.one_hot(share.argmin(1), len(units)).bool() & share.isfinite()

    costly = (gone * ~cheap).sum(1, keepdim=True)
    forced, available = (
        ((units - bound) * cost * cheap).sum(1, keepdim=True) for bound in (upper, lower)
    )
    stand_in = available >= target - costly + cost
    return last & (costly + forced >= target + cost.min()) & stand_in
