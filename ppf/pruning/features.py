"""What is known of each site before any policy is measured."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ppf.pruning.traits import Traits
from ppf.space import Space

_FIELDS = ("errors", "retained", "energy", "losses")
_SHARES = (0.25, 0.5, 0.75)  # kept shares at which a table holds a site's error


@dataclass(frozen=True)
class SiteFeatures:
    """Features of the sites of a space; samplers, rules, predictors and agents read them.

    Args:
        errors: relative reconstruction error if a site keeps k units, [site, k].
        retained: share of a site's importance in the k units that stay, [site, k].
        energy: squared norm of what a site adds to the hidden state, relative to the sum's.
        losses: expected loss of keeping k units at one site and all units elsewhere, [site, k],
            nats per token.
        traits: further numbers of the dense model, which allocation rules read; None: not kept.
    """

    space: Space
    errors: Float[Tensor, "sites levels"]
    retained: Float[Tensor, "sites levels"]
    energy: Float[Tensor, " sites"]
    losses: Float[Tensor, "sites levels"]
    traits: Traits | None = None

    def plain(self) -> dict[str, Any]:
        """As lists, for a checkpoint; without the traits."""
        return {name: getattr(self, name).tolist() for name in _FIELDS}

    @classmethod
    def restore(cls, space: Space, plain: dict[str, Any]) -> "SiteFeatures":
        """The inverse of `plain`."""
        errors, retained, energy, losses = (torch.tensor(plain[name]) for name in _FIELDS)
        return cls(space, errors, retained, energy, losses)

    def table(self, space: Space, device: torch.device) -> Float[Tensor, "sites features"]:
        """One row a site: which it is, its kind, depth, size, cost, and error at three widths.

        Args:
            space: the same sites under the search's budget.
        """
        units, cost = space.units.to(device), space.cost.to(device)
        kinds = torch.tensor([space.kinds.index(site.kind) for site in space.sites], device=device)
        layers = torch.tensor([site.layer for site in space.sites], device=device)
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
