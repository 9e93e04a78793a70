"""Encoders compute from policies the features that networks read."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ppf.pruning import SiteFeatures
from ppf.ranges import Count
from ppf.space import Space


class Encoder(nn.Module, ABC):
    """Policies to features, in batch and on the module's device.

    Every feature is monotone in the kept units of its own site, or constant. All dimensions but the
    last enumerate rows; a row belongs to one site. The last dimension holds the features of a row.
    Networks rely on this layout.

    Attributes:
        kinds: the kind of each row, numbered as in `space.kinds`.
        layers: the layer of each row.
        energy: of each row's site, as in `SiteFeatures`; zero if the row belongs to no site.
    """

    kinds: Int[Tensor, " rows"]
    layers: Int[Tensor, " rows"]
    energy: Float[Tensor, " rows"]
    units: Int[Tensor, " sites"]

    def __init__(self, space: Space) -> None:
        super().__init__()
        self.register_buffer("units", space.units)

    @property
    def dense(self) -> Float[Tensor, "..."]:
        """Features of the policy that keeps everything."""
        return self(self.units[None])[0]

    @property
    def empty(self) -> Float[Tensor, "..."]:
        """Features of the policy that keeps nothing."""
        return self(torch.zeros_like(self.units)[None])[0]

    @property
    def owners(self) -> Int[Tensor, "..."]:
        """The site that each row belongs to; for rows that never change, an arbitrary site."""
        dense = self.units.repeat(len(self.units), 1)
        lost = self(dense - torch.diag(self.units)) != self.dense
        return lost.any(-1).int().argmax(0)

    def relaxed(self, kept: Float[Tensor, "batch sites"]) -> Float[Tensor, "batch ..."]:
        """Features for fractional numbers of units: linear between whole ones, differentiable."""
        below = torch.minimum(kept.detach().floor().long().clamp_min(0), self.units - 1)
        weight = (kept - below)[:, self.owners][..., None]
        return torch.lerp(self(below), self(below + 1), weight.to(self.dense.dtype))

    @abstractmethod
    def forward(self, kept: Int[Tensor, "batch sites"]) -> Float[Tensor, "batch ..."]: ...


class Masks(Encoder):
    """Mask matrices, layers × units, one channel per kind, average-pooled to a common width.

    A row of a mask is a run of ones, so its pooled cells follow from the kept share alone. Rows
    of kinds that the space does not prune are zero.

    Args:
        width: cells that each mask row is pooled to.

    Source: the predictor's input in PPF (arXiv 2508.02381); the pooling is ours.
    """

    place: Int[Tensor, " sites"]
    cells: Int[Tensor, " width"]

    def __init__(self, space: Space, known: SiteFeatures, *, width: Count) -> None:
        super().__init__(space)
        grid = torch.arange(len(space.kinds) * space.layers)
        self.register_buffer("place", space.kind * space.layers + space.layer)
        self.register_buffer("cells", torch.arange(width))
        self.register_buffer("kinds", grid // space.layers)
        self.register_buffer("layers", grid % space.layers)
        energy = torch.zeros(len(grid)).index_copy(0, self.place, known.energy)
        self.register_buffer("energy", energy)
        self.grid = (len(space.kinds), space.layers)

    def forward(
        self, kept: Int[Tensor, "batch sites"]
    ) -> Float[Tensor, "batch kinds layers width"]:
        share = kept.float() / self.units
        cells = (share[..., None] * len(self.cells) - self.cells).clamp(0, 1)
        out = cells.new_zeros(len(kept), len(self.kinds), len(self.cells))
        return out.index_copy(1, self.place, cells).unflatten(1, self.grid)


class Sites(Encoder):
    """Features of each site: removed share and importance, error, powers of the loss, constants.

    The constants are cost, depth, energy and kind.

    Errors and losses are first replaced by their running maximum from the dense end, so that they
    are monotone in the kept units. Losses are divided by the mean loss of an empty site.
    """

    site: Int[Tensor, " sites"]
    levels: Float[Tensor, "sites levels features"]
    constant: Float[Tensor, "sites constants"]

    def __init__(self, space: Space, known: SiteFeatures) -> None:
        super().__init__(space)
        errors, losses = _monotone(known.errors), _monotone(known.losses)
        losses = losses / losses[:, 0].mean().clamp(min=_SMALLEST)
        cost = (space.units * space.params).float() / space.total
        per_site = torch.stack(
            [cost * len(space), space.layer / space.layers, known.energy.float()], 1
        )
        levels = [1 - known.retained.float(), errors, *(losses**p for p in _LOSS_POWERS)]
        self.register_buffer("levels", torch.stack(levels, -1))
        self.register_buffer(
            "constant", torch.cat([per_site, nn.functional.one_hot(space.kind)], 1)
        )
        self.register_buffer("site", torch.arange(len(space)))
        self.register_buffer("kinds", space.kind)
        self.register_buffer("layers", space.layer)
        self.register_buffer("energy", known.energy.float())

    def forward(self, kept: Int[Tensor, "batch sites"]) -> Float[Tensor, "batch sites features"]:
        removed = (1 - kept.float() / self.units)[..., None]
        constant = self.constant.expand(len(kept), -1, -1)
        return torch.cat([removed, self.levels[self.site, kept.long()], constant], -1)


def _monotone(levels: Float[Tensor, "sites levels"]) -> Float[Tensor, "sites levels"]:
    """The running maximum from the dense end, which falls with the kept units."""
    return levels.float().flip(1).cummax(1).values.flip(1)


_LOSS_POWERS = (0.5, 1.0, 1.5)  # exponents of the expected loss, one feature each
_SMALLEST = 1e-12  # nats; avoids a division by zero
