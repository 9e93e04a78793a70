"""Exact budgets: from wished-for widths to a policy that removes what was asked."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppf.space.sites import Space


def project(
    space: Space, wanted: Float[Tensor, "batch sites"], ratio: Float[Tensor, " batch"]
) -> Int[Tensor, "batch sites"]:
    """The policies nearest to `wanted` that remove at least `ratio`, and barely more.

    All units compete for removal by how far they lie above their site's wish, as a share of the site;
    the cut falls where the budget is met. Costly units (attention groups) are then fixed, and the cut is
    made again among the cheapest ones (MLP blocks), so the excess stays below one cheapest unit wherever
    the space has enough of them.

    Args:
        wanted: units to keep, real numbers; outside [0, units] they only order the units.
        ratio: pruning ratios in [0, 1).
    """
    device, batch = wanted.device, wanted.shape[0]
    units, unit_params = space.units.to(device), space.params.to(device)
    site = torch.repeat_interleave(torch.arange(len(space), device=device), units)
    first = units.cumsum(0) - units
    rank = torch.arange(len(site), device=device) - first[site]
    cost = unit_params[site].expand(batch, -1)
    cheapest = unit_params.min()
    cheap = (unit_params == cheapest)[site].expand(batch, -1)

    excess = (rank + 0.5 - wanted.double()[:, site]) / units[site] + _spread(len(space), device)[site]
    queue = excess.argsort(dim=1, descending=True, stable=True)
    target = (ratio.double() * space.total - 1e-6).ceil().long()[:, None]

    cost, cheap = cost.gather(1, queue), cheap.gather(1, queue)
    gone = cost.cumsum(1) - cost < target
    coarse = gone & ~cheap
    coarse = coarse & ~_overshooting(coarse, cost, cheap, target, cheapest)

    left = target - (cost * coarse).sum(1, keepdim=True)
    fine_cost = cost * cheap
    fine = cheap & (fine_cost.cumsum(1) - fine_cost < left)
    removed = torch.zeros_like(wanted, dtype=torch.long)
    removed.scatter_add_(1, site[queue], (coarse | fine).long())
    return units - removed


def uniform(space: Space, ratio: Float[Tensor, " batch"]) -> Int[Tensor, "batch sites"]:
    """The same share of every site, as nearly as units and budget allow."""
    share = (1 - ratio.double())[:, None]
    return project(space, share * space.units.to(ratio.device), ratio)


def _spread(sites: int, device: torch.device) -> Float[Tensor, " sites"]:
    """Tiny offsets that break ties evenly over the depth, by the golden ratio's low-discrepancy sequence."""
    return 1e-6 * (torch.arange(sites, device=device, dtype=torch.double) * 0.6180339887498949).frac()


def _overshooting(
    coarse: Tensor, cost: Tensor, cheap: Tensor, target: Tensor, cheapest: Tensor
) -> Tensor:
    """The last costly unit of each row where it alone overshoots and cheap units can stand in for it."""
    spent = (cost * coarse).cumsum(1)
    total = spent[:, -1:]
    last = coarse & (coarse.cumsum(1) == coarse.sum(1, keepdim=True))
    stand_in = (cost * cheap).sum(1, keepdim=True) >= target - total + cost
    return last & (total >= target + cheapest) & stand_in
