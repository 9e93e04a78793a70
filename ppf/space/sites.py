"""Sites (layer, kind) and the space that they span."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ppf.errors import PPFError


@dataclass(frozen=True)
class Prunable:
    """What a model family tells of one prunable place.

    Args:
        atoms: KV groups of an attention layer, or channels of an FFN.
        params: parameters that go with one atom, in every projection that it touches.
    """

    layer: int
    kind: str
    atoms: int
    params: int


@dataclass(frozen=True)
class Site:
    """One prunable place; a policy keeps its first `kept` units, most important first."""

    layer: int
    kind: str
    units: int
    atoms_per_unit: int
    params: int
    """Parameters of one unit."""

    @property
    def name(self) -> str:
        return f"{self.layer}.{self.kind}"


@dataclass(frozen=True)
class Space:
    """The sites that policies decide on, with their costs as tensors.

    A policy is `kept: Int[Tensor, "sites"]`, between 0 and `units` at every site. The pruning ratio
    is removed parameters over the parameters of all sites.

    Args:
        budget: what searches in this space are charged, as in "kv".
        prices: what it charges for one unit, per site, in whole numbers; None: its parameters.
    """

    sites: tuple[Site, ...]
    name: str = "width"
    budget: str = "params"
    prices: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.sites)

    def describe(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self) | {"sites": [asdict(site) for site in self.sites]}

    @classmethod
    def restore(cls, description: Mapping[str, Any]) -> "Space":
        """The inverse of `describe`, also where JSON has made lists of tuples."""
        sites = tuple(Site(**site) for site in description["sites"])
        prices = description["prices"] and tuple(description["prices"])
        return cls(sites, description["name"], description["budget"], prices)

    @cached_property
    def units(self) -> Int[Tensor, " sites"]:
        return torch.tensor([site.units for site in self.sites])

    @cached_property
    def params(self) -> Int[Tensor, " sites"]:
        """Parameters of one unit, per site."""
        return torch.tensor([site.params for site in self.sites])

    @cached_property
    def total(self) -> int:
        """Parameters of all sites."""
        return int((self.units * self.params).sum())

    @cached_property
    def cost(self) -> Int[Tensor, " sites"]:
        """What the budget charges for one unit, per site; 0: the site is free, and stays whole."""
        return self.params if self.prices is None else torch.tensor(self.prices)

    def priced(self, budget: str, prices: Sequence[int]) -> "Space":
        """The same sites under another budget.

        Raises:
            PPFError: it charges for none of them.
        """
        if not any(prices):
            raise PPFError(
                f"budget={budget} charges for nothing in space={self.name}: give another budget or"
                " space."
            )
        return replace(self, budget=budget, prices=tuple(prices))

    def part(self, chosen: Bool[Tensor, " sites"]) -> "Space":
        """The space of some of the sites."""
        index = chosen.nonzero().flatten().tolist()
        prices = None if self.prices is None else tuple(self.prices[i] for i in index)
        return replace(self, sites=tuple(self.sites[i] for i in index), prices=prices)

    def shares(self, ratio: Float[Tensor, " batch"]) -> Float[Tensor, "batch sites"]:
        """Units that uniform pruning would keep, if units could be split."""
        units, charged = self.units.to(ratio.device), self.cost.to(ratio.device) > 0
        return torch.where(charged, (1 - ratio.double())[:, None] * units, units.double())

    @cached_property
    def layers(self) -> int:
        return 1 + max(site.layer for site in self.sites)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(site.kind for site in self.sites))

    @property
    def dense(self) -> Int[Tensor, " sites"]:
        """The policy that keeps everything."""
        return self.units.clone()

    def removed(self, kept: Int[Tensor, "*batch sites"]) -> Int[Tensor, "*batch"]:
        """Parameters that a policy removes."""
        return ((self.units.to(kept.device) - kept) * self.params.to(kept.device)).sum(-1)

    def ratio(self, kept: Int[Tensor, "*batch sites"]) -> Float[Tensor, "*batch"]:
        """The pruning ratio that a policy really reaches."""
        return self.removed(kept).double() / self.total

    def policy(self, named: Mapping[str, int]) -> list[int]:
        """A policy from units by site name; raises PPFError where they do not fit."""
        kept = [named.get(site.name, -1) for site in self.sites]
        self.check_policy(kept if len(named) == len(kept) else [])
        return kept

    def saved(self, kept: Int[Tensor, "*batch sites"]) -> Float[Tensor, "*batch"]:
        """The share of the budget's cost that a policy saves; none where all sites are free."""
        units, cost = self.units.to(kept.device), self.cost.to(kept.device)
        return ((units - kept) * cost).sum(-1).double() / (units * cost).sum().clamp_min(1)

    def check_policy(self, kept: Sequence[int]) -> None:
        """Raises PPFError unless `kept` fits every site."""
        fits = len(kept) == len(self) and all(
            0 <= k <= s.units for k, s in zip(kept, self.sites, strict=True)
        )
        if not fits:
            raise PPFError(
                f"the policy does not fit space={self.name} of this model ({len(self)} sites):"
                " give the model and the space that it was found for."
            )


def build_space(
    prunables: Iterable[Prunable],
    *,
    name: str,
    kinds: Sequence[str],
    channel_multiple: int,
    whole_sites: bool,
) -> Space:
    """The space over the places of the given kinds.

    Args:
        kinds: "attention", "mlp" or both.
        channel_multiple: channels in one MLP unit.
        whole_sites: a site is one unit, kept or dropped (depth pruning).

    Raises:
        PPFError: `channel_multiple` does not divide an FFN width.
    """

    def site(place: Prunable) -> Site:
        size = place.atoms if whole_sites else channel_multiple if place.kind == "mlp" else 1
        if place.atoms % size:
            raise PPFError(
                f"space.channel_multiple={channel_multiple} does not divide the FFN width"
                f" {place.atoms} of layer {place.layer}: give a divisor."
            )
        return Site(place.layer, place.kind, place.atoms // size, size, place.params * size)

    return Space(tuple(site(p) for p in prunables if p.kind in kinds), name)


def check_ratio(ratio: float) -> None:
    """Raises PPFError unless 0 ≤ ratio < 1."""
    if not 0 <= ratio < 1:
        raise PPFError(f"ratio={ratio} is outside the space: give 0 ≤ ratio < 1, as in ratio=0.3.")


def new_policies(
    kept: Int[Tensor, "n sites"], known: Int[Tensor, "known sites"]
) -> Int[Tensor, "new sites"]:
    """The distinct policies that are not known yet, in their order."""
    old = set(map(tuple, known.tolist()))
    rows = [row for row in dict.fromkeys(map(tuple, kept.tolist())) if row not in old]
    return kept.new_tensor(rows).reshape(-1, kept.shape[1])
