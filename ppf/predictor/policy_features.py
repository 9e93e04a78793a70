"""Features of policies that the Gaussian process reads."""

from itertools import accumulate

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from ppf.space import Space

ROOTS, EMPTIED = "roots", "emptied"


class PolicyFeatures(nn.Module):
    """Features of policies, in groups. All but the roots are zero for the dense policy.

    A site's effect is the predicted cost of its cut alone, on the transformed scale.

    - effects_0, effects_1, …: effects, summed over the sites of a kind in neighbouring layers;
    - shares_0, shares_1, …: removed shares, summed likewise;
    - roots: the square root of each site's effect, at least 0.001 so that gradients are finite;
    - emptied: one for each site that keeps no unit.

    Attributes:
        columns: the columns of each group.
    """

    units: Int[Tensor, " sites"]
    effects: Float[Tensor, "sites levels"]
    effect_pool: Float[Tensor, "sites sums"]
    share_pool: Float[Tensor, "sites sums"]

    def __init__(self, space: Space) -> None:
        super().__init__()
        effect_pools, share_pools = (
            {f"{name}_{i}": _pool(space, span) for i, span in enumerate(spans)}
            for name, spans in (("effects", _EFFECTS), ("shares", _SHARES))
        )
        sizes = {name: pool.shape[1] for name, pool in (effect_pools | share_pools).items()}
        sizes |= {ROOTS: len(space), EMPTIED: len(space)}
        ends = accumulate(sizes.values())
        self.columns = {n: slice(end - sizes[n], end) for n, end in zip(sizes, ends, strict=True)}
        self.register_buffer("units", space.units)
        self.register_buffer("effects", torch.zeros(len(space), int(space.units.max()) + 1))
        for name, pools in (("effect_pool", effect_pools), ("share_pool", share_pools)):
            self.register_buffer(name, torch.cat(list(pools.values()), 1), persistent=False)

    @property
    def dense(self) -> Float[Tensor, "1 features"]:
        """Features of the dense policy."""
        return self(self.units[None])

    def forward(self, kept: Shaped[Tensor, "batch sites"]) -> Float[Tensor, "batch features"]:
        """Features of policies; widths may lie between whole units."""
        effects = at_widths(self.effects, kept)
        removed = 1 - kept.to(effects) / self.units
        groups = (
            effects @ self.effect_pool,
            removed @ self.share_pool,
            effects.clamp(min=_SMALLEST).sqrt(),
            (1 - kept).clamp(min=0).to(effects),
        )
        return torch.cat(groups, 1)


def at_widths(
    table: Float[Tensor, "sites levels"], kept: Shaped[Tensor, "batch sites"]
) -> Float[Tensor, "batch sites"]:
    """Values of a table at the kept units of each site; linear between whole units."""
    below = kept.detach().long().T
    values = table.gather(1, below)
    if kept.is_floating_point():
        above = table.gather(1, (below + 1).clamp(max=table.shape[1] - 1))
        values = torch.lerp(values, above, (kept.T - below).to(table))
    return values.T


def _pool(space: Space, span: float) -> Float[Tensor, "sites sums"]:
    """A matrix that sums over the sites of one kind in `span` of the layers."""
    layers = max(1, round(span * space.layers))
    run = space.layer // layers
    return F.one_hot(space.kind * (int(run.max()) + 1) + run).float()


# For each group, the neighbouring layers that are summed, as a share of all; at least one layer.
_EFFECTS = (0.0, 0.2, 1.0)  # from the finest to the coarsest
_SHARES = (0.0, 0.1)
_SMALLEST = 1e-6  # effect
