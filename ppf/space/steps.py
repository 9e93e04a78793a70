"""Spaces whose sites may keep only some numbers of units."""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppf.space.sites import Space


@dataclass(frozen=True)
class SteppedSpace(Space):
    """A space whose sites may keep only some numbers of units, called steps.

    Args:
        steps: the steps of each site, ascending.
    """

    steps: tuple[tuple[int, ...], ...] = ()

    @cached_property
    def table(self) -> Int[Tensor, "sites steps"]:
        """The steps of each site; short rows are padded with their last step."""
        longest = max(map(len, self.steps))
        return torch.tensor([[*row, *row[-1:] * (longest - len(row))] for row in self.steps])

    @property
    def stride(self) -> Int[Tensor, " sites"]:
        """Number of units between two steps, on average over all sites."""
        mean = max(1, int(self.units.sum()) // sum(map(len, self.steps)))
        return torch.full_like(self.units, mean)

    @cached_property
    def smooth(self) -> Space:
        """The space of the same sites, which may keep any number of units."""
        return Space(self.sites, self.name, self.budget, self.prices)

    def to_steps(
        self,
        kept: Int[Tensor, "batch sites"],
        wanted: Float[Tensor, "batch sites"],
        ratio: Float[Tensor, " batch"],
        upper: Int[Tensor, "batch sites"],
    ) -> Int[Tensor, "batch sites"]:
        """Policies that keep steps only, and save at least `ratio` of the total cost.

        Each site is lowered to a step. Sites are then raised by one step each, the farthest below
        `wanted` first, while the budget allows it.

        Args:
            kept: policies of the smooth space that meet the budget.
            wanted: units to keep, as real numbers.
            ratio: pruning ratios in [0, 1).
            upper: largest numbers of units to keep.
        """
        table, cost, units = (x.to(kept.device) for x in (self.table, self.cost, self.units))
        rows, sites = (torch.arange(size, device=kept.device) for size in kept.shape)
        number = (table.T[:, None] <= kept).sum(0).clamp(1, table.shape[1]) - 1
        whole = (units * cost).sum().double()
        room = (whole - (ratio.double() * whole - 1e-6).ceil()).long()
        while True:
            kept = table[sites, number]
            raised = table[sites, (number + 1).clamp(max=table.shape[1] - 1)]
            left = room - (kept * cost).sum(1)
            fits = (raised > kept) & (raised <= upper) & ((raised - kept) * cost <= left[:, None])
            if not fits.any():
                return kept
            chosen = ((wanted - kept) / units).where(fits, -torch.inf).argmax(1)
            number[rows, chosen] += fits.any(1)
