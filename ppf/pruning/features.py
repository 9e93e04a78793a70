"""Features of sites, computed from the dense model before any policy is measured."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ppf.pruning.traits import Traits
from ppf.space import Space

_SHARES = (0.25, 0.5, 0.75)  # kept shares whose errors are columns of `table`


@dataclass(frozen=True)
class SiteFeatures:
    """Features of the sites of a space, for samplers, allocation rules, predictors and agents.

    Args:
        space: the sites; in a search with the prices of its budget.
        errors: relative reconstruction error of a site that keeps k units, [site, k].
        retained: share of a site's importance that its first k units have, [site, k].
        energy: share of a site's output in the squared norm of the hidden state (see `Traits`).
        losses: expected increase of the loss if one site keeps k units and all others keep all,
            [site, k], in nats per token.
        traits: traits of the dense model, which allocation rules read; None: not stored.
    """

    space: Space
    errors: Float[Tensor, "sites levels"]
    retained: Float[Tensor, "sites levels"]
    energy: Float[Tensor, " sites"]
    losses: Float[Tensor, "sites levels"]
    traits: Traits | None = None

    def table(self, device: torch.device) -> Float[Tensor, "sites features"]:
        """One row per site, for agents.

        Columns: one-hot site, one-hot kind, relative depth, relative number of units, relative
        cost, and the reconstruction error at three widths.

        """
        space = self.space
        units, cost = space.units.to(device), space.cost.to(device)
        kinds, layers = space.kind.to(device), space.layer.to(device)
        kept = torch.stack([(share * units).round().long() for share in _SHARES], 1)
        numbers = [
            layers / max(space.layers - 1, 1),
            units / units.max(),
            units * cost / (units * cost).max(),
        ]
        return torch.cat(
            [
                torch.eye(len(space), device=device),
                torch.nn.functional.one_hot(kinds, len(space.kinds)),
                torch.stack(numbers, 1),
                self.errors.to(device).gather(1, kept),
            ],
            1,
        ).float()
