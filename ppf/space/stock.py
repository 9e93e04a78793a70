"""Policies whose model is of a stock class: all layers that stay have the same widths."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppf.errors import PPFError
from ppf.space.sites import Space


def project_stock(
    space: Space, wanted: Float[Tensor, "batch sites"], ratio: Float[Tensor, " batch"]
) -> Int[Tensor, "batch sites"]:
    """The policies nearest to `wanted` that save at least `ratio` and keep equal layers.

    A layer is removed as a whole, or keeps as many units of each kind as every other one. Layers of
    low wanted shares are removed first. For a number of layers that stay, and their units of
    attention, the budget gives the units of the FFNs. Of these policies, the one whose shares
    differ least from the wanted ones is taken, in squares.

    Args:
        wanted: units to keep, as real numbers.
        ratio: pruning ratios in [0, 1).

    Raises:
        PPFError: no such policy saves a ratio.
    """
    kinds = len(space.kinds)
    layers = len(space) // kinds
    units, cost = (x.to(wanted.device)[:kinds].double() for x in (space.units, space.cost))
    share = wanted.double().unflatten(1, (layers, kinds)) / units
    order = share.sum(2).argsort(dim=1, descending=True, stable=True)
    ranks, share = order.argsort(dim=1), share.gather(1, order[..., None].expand_as(share))
    whole = layers * (units @ cost)
    room = whole - (ratio.double() * whole - 1e-6).ceil()
    # Units of attention; with FFNs only, a single row without a number.
    others = units.new_tensor(space.stock)[:, None] if kinds > 1 else units.new_zeros(1, 0)

    policy, least = torch.zeros_like(share), torch.full_like(room, torch.inf)
    for stay in range(1 if kinds > 1 else layers, layers + 1):
        left = room[:, None] / stay - others @ cost[:-1]
        free = (left > -1e-6) * units[-1]  # FFNs cost nothing, as in a budget of KV caches
        last = (left / cost[-1] if cost[-1] else free).floor().clamp(max=units[-1])
        counts = torch.cat([others.expand(len(last), -1, -1), last[..., None]], 2)
        apart = (share[:, None, :stay] - (counts / units)[:, :, None]).square().sum((2, 3))
        apart += share[:, stay:].square().sum((1, 2))[:, None]
        found, option = apart.where(last >= 1, torch.inf).min(1)
        chosen = counts[torch.arange(len(option)), option][:, None]
        better = (found < least)[:, None, None]
        policy = torch.where(better, chosen * (ranks < stay)[..., None], policy)
        least = least.minimum(found)
    if least.isinf().any():
        worst = float(ratio[least.isinf()].min())
        raise PPFError(f"no model of equal layers saves {worst:.3g}: give a lower ratio.")
    return policy.flatten(1).long()
