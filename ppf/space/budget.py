"""Projection of real-valued widths to policies that meet a budget exactly."""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ppf.space.sites import Space
from ppf.space.steps import SteppedSpace
from ppf.space.stock import project_stock

Bounds = tuple[Int[Tensor, "batch sites"], Int[Tensor, "batch sites"]]
"""Smallest and largest numbers of units to keep."""

_TIE = 1e-6  # largest offset that breaks a tie, as a share of a site
_MARGIN = 1.001  # for rounding errors in the width of a bracket
_AT_ONCE = 4096  # numbers in one tensor operation, below which its time hardly depends on them


def project(
    space: Space,
    wanted: Float[Tensor, "batch sites"],
    ratio: Float[Tensor, " batch"],
    bounds: Bounds | None = None,
) -> Int[Tensor, "batch sites"]:
    """The policies nearest to `wanted` that save at least `ratio` of the total cost.

    Each unit is ranked by its distance above `wanted`, as a share of its site. Units are removed in
    the order of decreasing distance until the budget is met. The numbers of costly units
    (attention) are then fixed, and the last step is repeated among the cheapest units (MLP). The
    excess is therefore below the cost of one cheapest unit, if the space has enough of them. Sites
    of cost 0 keep all units. In a `SteppedSpace` sites keep only steps, and lower bounds are
    lowered to steps. Policies of a stock space have equal layers, and no bounds.

    Args:
        wanted: units to keep, as real numbers. Values outside [0, units] are allowed; they only
            rank the units.
        ratio: pruning ratios in [0, 1).
        bounds: smallest and largest numbers of units to keep. The bounds of a row are ignored if no
            policy within them meets its ratio.
    """
    if space.stock:
        return project_stock(space, wanted, ratio)
    if isinstance(space, SteppedSpace):
        steps = space.table.to(wanted.device)
        least, most = steps[:, 0].expand(wanted.shape), steps[:, -1].expand(wanted.shape)
        lower, upper = (bound.clamp(least, most) for bound in bounds or (least, most))
        kept = project(space.smooth, wanted, ratio, (lower, upper))
        return space.to_steps(kept, wanted, ratio, upper)

    if not space.cost.all():
        charged = space.cost.to(wanted.device) > 0
        kept = space.units.to(wanted.device).repeat(len(wanted), 1)
        within = None if bounds is None else (bounds[0][:, charged], bounds[1][:, charged])
        kept[:, charged] = project(space.part(charged), wanted[:, charged], ratio, within)
        return kept

    units, table = (x.to(wanted.device).double() for x in (space.units, space.kept_cost))
    cost = _Costs(table, units)
    target = (ratio.double() * cost.whole - 1e-6).ceil()[:, None]
    lower, upper = _feasible(units, cost, target, bounds)
    # Unit j lies (j + 1/2 - wanted) / units above `wanted`. Removing all units that lie more than c
    # above it keeps ⌊c · units + start⌋ units.
    # Offsets of a golden-ratio sequence break ties evenly over the depth.
    numbers = torch.arange(len(space), device=wanted.device, dtype=torch.double)
    start = wanted.double() + 0.5 - units * (_TIE * (numbers * 0.6180339887498949).frac())

    kept = _cut(start, cost, cost.whole - target, lower, upper)
    if not cost.cheap.all():
        kept = kept + _overshooting(kept, start, cost, target, lower, upper)
        cheap = cost.cheap.nonzero()[:, 0]
        left = cost.whole - target - (cost.of(kept) * ~cost.cheap).sum(1, keepdim=True)
        edges = lower[:, cheap], upper[:, cheap]
        kept[:, cheap] = _cut(start[:, cheap], _Costs(table[cheap], units[cheap]), left, *edges)
    return kept.long()


def uniform(space: Space, ratio: Float[Tensor, " batch"]) -> Int[Tensor, "batch sites"]:
    """The uniform policies: every site keeps the same share, up to rounding.

    Args:
        ratio: pruning ratios in [0, 1).
    """
    return project(space, space.shares(ratio), ratio)


class _Costs:
    """The cost of every site by the number of units it keeps, in float64.

    Args:
        table: cost at every level, [sites, levels]; short rows are padded.
        units: number of units of each site, [sites].

    Attributes:
        whole: cost of all units.
        least: cost of one cheapest unit.
        cheap: the sites whose units are cheapest, [sites].
    """

    def __init__(self, table: Tensor, units: Tensor) -> None:
        self.table, self.units = table, units
        unit = table[:, -1] / units
        self.whole, self.least = table[:, -1].sum(), unit.min()
        self.cheap = unit == self.least

    def of(self, kept: Float[Tensor, "*cuts batch sites"]) -> Float[Tensor, "*cuts batch sites"]:
        """The cost of each site."""
        found = self.table.gather(1, kept.long().flatten(0, -2).T)
        return found.T.unflatten(0, kept.shape[:-1])


def _feasible(
    units: Tensor, cost: _Costs, target: Tensor, bounds: Bounds | None
) -> tuple[Tensor, Tensor]:
    """The bounds of each row, replaced by [0, units] if they exclude the target."""
    shape = (len(target), len(units))
    nothing, everything = torch.zeros_like(units).expand(shape), units.expand(shape)
    if bounds is None:
        return nothing, everything
    lower, upper = (bound.double() for bound in bounds)
    most, least = (cost.whole - cost.of(bound).sum(1) for bound in (lower, upper))
    holds = (most[:, None] >= target) & (least[:, None] < target + cost.least)
    return torch.where(holds, lower, nothing), torch.where(holds, upper, everything)


def _cut(
    start: Float[Tensor, "batch sites"],
    cost: _Costs,
    budget: Float[Tensor, "batch 1"],
    lower: Float[Tensor, "batch sites"],
    upper: Float[Tensor, "batch sites"],
) -> Float[Tensor, "batch sites"]:
    """Removes units, the farthest above `wanted` first, until the others cost at most `budget`."""
    units = cost.units

    def keep(share: Float[Tensor, "batch cuts"]) -> Float[Tensor, "cuts batch sites"]:
        return torch.addcmul(start, share.T[..., None], units).clamp_(lower, upper).floor_()

    low = (-start / units).amin(1, keepdim=True) - 1
    high = ((units + 1 - start) / units).amax(1, keepdim=True)
    # Bisection until at most one unit of each site is undecided. Small batches evaluate all
    # midpoints of several halvings at once.
    bits = max(1, (_AT_ONCE // (start.numel() + 1)).bit_length() - 1)
    steps = torch.arange(2**bits + 1, device=start.device, dtype=torch.double) / 2**bits
    halvings = math.log2(_MARGIN * float((high - low).amax() * units.amax()))
    for _ in range(math.ceil(halvings / bits)):
        cuts = torch.lerp(low, high, steps)
        stays = cost.of(keep(cuts[:, 1:-1])).sum(2).T
        last = (stays <= budget).sum(1, keepdim=True)
        low, high = cuts.gather(1, last), cuts.gather(1, last + 1)

    # The nearest undecided units stay, while the budget allows it; of ties, those of the last site.
    (least,), (most,) = keep(low), keep(high)
    order = ((most - start) / units).flip(1).argsort(dim=1, stable=True)
    spent = (cost.of(most) - cost.of(least)).flip(1).gather(1, order).cumsum(1)
    fits = (spent <= budget - cost.of(least).sum(1, keepdim=True)).to(least)
    return least + (most - least) * torch.zeros_like(least).scatter(1, order, fits).flip(1)


def _overshooting(
    kept: Tensor, start: Tensor, cost: _Costs, target: Tensor, lower: Tensor, upper: Tensor
) -> Bool[Tensor, "batch sites"]:
    """Marks the costly unit that was removed last, if cheap units can meet the budget instead.

    It is marked only if its removal alone makes the excess larger than one cheapest unit.
    """
    cheap, units = cost.cheap, cost.units
    present = cost.of(kept)
    share = torch.where((kept < upper) & ~cheap, (kept + 1 - start) / units, torch.inf)
    last = torch.nn.functional.one_hot(share.argmin(1), len(units)).bool() & share.isfinite()

    costly, forced, available = (
        ((cost.table[:, -1] - x) * sites).sum(1, keepdim=True)
        for x, sites in ((present, ~cheap), (cost.of(upper), cheap), (cost.of(lower), cheap))
    )
    returned = cost.of((kept + 1).minimum(units)) - present
    replaceable = available >= target - costly + returned
    return last & (costly + forced >= target + cost.least) & replaceable
