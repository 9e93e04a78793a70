"""Sites (layer, kind), and the space of all policies over them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Annotated, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from ppf.errors import PPFError
from ppf.ranges import Count

Kind = Literal["attention", "mlp", "experts"]
Heads = tuple[tuple[int, int], ...]
"""KV groups, and query heads of each group, at every level from no unit to all units."""
Price = int | tuple[int, int]
"""Cost of one unit; of a site of query heads: that of one query head, and of a group without any"""


@dataclass(frozen=True)
class Prunable:
    """One prunable block of a model, before a space divides it into units.

    Args:
        kind: "attention", "mlp" or "experts".
        atoms: number of KV groups of an attention block, of channels of an FFN, or of its experts.
        params: parameters that are removed with one atom, summed over all projections.
        queries: query heads of a KV group; 1 for FFNs.
        shared: parameters of an atom that belong to no single query head: those of K and V.
        heads: what each level keeps if query heads are units (see `ppf.pruning.order`); empty:
            query heads go first, then groups.
        equal: numbers of atoms that the family's own class can have in all layers; empty: any.
    """

    layer: int
    kind: str
    atoms: int
    params: int
    queries: int = 1
    shared: int = 0
    heads: Heads = ()
    equal: tuple[int, ...] = ()


@dataclass(frozen=True)
class Site:
    """One prunable block of a model. A policy keeps its most important units.

    In a site of query heads, a unit is one query head of every KV group that is left, or one whole
    KV group. So all groups of a layer have the same number of query heads.

    Args:
        kind: "attention", "mlp" or "experts".
        units: number of units, the smallest parts that a policy can remove.
        atoms_per_unit: number of atoms (KV groups, FFN channels or experts) in one unit.
        params: parameters of one unit; of a site of query heads: those of one query head.
        heads: what each level of a site of query heads keeps; of other sites empty.
        shared: parameters of a KV group without query heads, in a site of query heads.
    """

    layer: int
    kind: str
    units: int
    atoms_per_unit: int
    params: int
    heads: Heads = ()
    shared: int = 0

    @property
    def name(self) -> str:
        """Its name in files, as in "3.mlp"."""
        return f"{self.layer}.{self.kind}"

    @property
    def price(self) -> Price:
        """The parameters of one unit, as other costs are given."""
        return (self.params, self.shared) if self.heads else self.params

    def costs(self, price: Price) -> list[int]:
        """The cost of every level, from no unit to all units."""
        if isinstance(price, int):
            return [kept * price for kept in range(self.units + 1)]
        head, group = price
        return [groups * (queries * head + group) for groups, queries in self.heads]


@dataclass(frozen=True)
class Space:
    """The sites of a model, with their costs as tensors.

    A policy is a tensor `kept: Int[Tensor, "sites"]`: the number of units, from 0 to `units`, that
    each site keeps. The pruning ratio is the number of removed parameters, divided by the
    parameters of all sites.

    Args:
        sites: in the order of a policy's entries.
        name: name of the space, as in the override `space=width`.
        budget: name of the budget, as in the override `budget=kv`.
        prices: cost of one unit of each site under the budget; None: its parameters.
        stock: numbers of attention units that layers of the family's own class can have; all layers
            that stay then keep the same numbers of units (see `project_stock`). Empty: they need
            not.
    """

    sites: tuple[Site, ...]
    name: str = "width"
    budget: str = "params"
    prices: tuple[Price, ...] | None = None
    stock: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.sites)

    def describe(self) -> dict[str, Any]:
        """This space as plain values, for a checkpoint."""
        return asdict(self) | {"sites": [asdict(site) for site in self.sites]}

    @classmethod
    def restore(cls, description: Mapping[str, Any]) -> "Space":
        """The inverse of `describe`. Lists may replace tuples, as they do after JSON."""
        sites = []
        for site in description["sites"]:
            own = {k: value for k, value in site.items() if k != "index"}  # of earlier versions
            sites.append(Site(**own | {"heads": tuple(map(tuple, site.get("heads", ())))}))
        prices = description["prices"] and tuple(
            tuple(price) if isinstance(price, Sequence) else price
            for price in description["prices"]
        )
        stock = tuple(description.get("stock", ()))  # missing in files of earlier versions
        return cls(tuple(sites), description["name"], description["budget"], prices, stock)

    @cached_property
    def units(self) -> Int[Tensor, " sites"]:
        """Number of units of each site."""
        return torch.tensor([site.units for site in self.sites])

    @cached_property
    def kept_params(self) -> Int[Tensor, "sites levels"]:
        """Parameters of each site at every level; short rows are padded with their last entry."""
        return self._table([site.price for site in self.sites])

    @cached_property
    def kept_cost(self) -> Int[Tensor, "sites levels"]:
        """Cost of each site under the budget at every level, padded like `kept_params`."""
        return self.kept_params if self.prices is None else self._table(self.prices)

    def _table(self, prices: Sequence[Price]) -> Int[Tensor, "sites levels"]:
        rows = [site.costs(price) for site, price in zip(self.sites, prices, strict=True)]
        longest = max(map(len, rows))
        return torch.tensor([[*row, *row[-1:] * (longest - len(row))] for row in rows])

    @cached_property
    def even(self) -> bool:
        """Whether all units of each site have the same cost."""
        return not any(site.heads for site in self.sites)

    @cached_property
    def params(self) -> Int[Tensor, " sites"] | Float[Tensor, " sites"]:
        """Parameters of one unit of each site; the mean if they differ."""
        return self._mean(self.kept_params)

    @cached_property
    def layer(self) -> Int[Tensor, " sites"]:
        """Layer of each site."""
        return torch.tensor([site.layer for site in self.sites])

    @cached_property
    def kind(self) -> Int[Tensor, " sites"]:
        """The kind of each site, by its position in `kinds`."""
        return torch.tensor([self.kinds.index(site.kind) for site in self.sites])

    def of_kind(self, kind: str) -> Bool[Tensor, " sites"]:
        """Which sites are of a kind."""
        return torch.tensor([site.kind == kind for site in self.sites])

    @cached_property
    def total(self) -> int:
        """Parameters of all sites."""
        return int(self.kept_params[:, -1].sum())

    @cached_property
    def cost(self) -> Int[Tensor, " sites"] | Float[Tensor, " sites"]:
        """Cost of one unit of each site under the budget; the mean if they differ.

        Sites of cost 0 are never pruned.
        """
        return self._mean(self.kept_cost)

    def _mean(self, kept: Int[Tensor, "sites levels"]) -> Tensor:
        return kept[:, 1].clone() if self.even else kept[:, -1] / self.units.double()

    def priced(self, budget: str, prices: Sequence[Price]) -> "Space":
        """The same sites under another budget.

        Args:
            budget: name of the budget.
            prices: cost of one unit of each site.

        Raises:
            PPFError: all prices are 0.
        """
        space = replace(self, budget=budget, prices=tuple(prices))
        if not space.cost.any():
            raise PPFError(
                f"no site of space={self.name} has a cost under budget={budget}: give another"
                " budget or space."
            )
        return space

    def part(self, chosen: Bool[Tensor, " sites"]) -> "Space":
        """The space that has only the chosen sites."""
        index = chosen.nonzero().flatten().tolist()
        prices = None if self.prices is None else tuple(self.prices[i] for i in index)
        return replace(self, sites=tuple(self.sites[i] for i in index), prices=prices)

    def shares(self, ratio: Float[Tensor, " batch"]) -> Float[Tensor, "batch sites"]:
        """Units that uniform pruning keeps at each site, before rounding.

        Args:
            ratio: pruning ratios in [0, 1).
        """
        charged = self.cost.to(ratio.device) > 0
        kept = (1 - ratio.double())[:, None].expand(-1, len(self))
        return self.widths(torch.where(charged, kept, 1.0))

    def widths(self, share: Float[Tensor, "batch sites"]) -> Float[Tensor, "batch sites"]:
        """Units that keep these shares of each site's parameters, as real numbers.

        Args:
            share: may lie outside [0, 1], and is then extended as if units were equal.
        """
        units = self.units.to(share.device)
        if self.even:
            return share * units
        table = self.kept_params.to(share)
        wanted = (share * table[:, -1]).T.contiguous()
        below = torch.searchsorted(table, wanted, right=True) - 1
        below = below.clamp(min=0).minimum(units[:, None] - 1)
        low, high = table.gather(1, below), table.gather(1, below + 1)
        within = (below + (wanted - low) / (high - low)).T
        return torch.where((share < 0) | (share > 1), share * units, within)

    @cached_property
    def layers(self) -> int:
        """Number of layers, up to the last one that has a site."""
        return 1 + max(site.layer for site in self.sites)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The distinct kinds, in the order of the sites."""
        return tuple(dict.fromkeys(site.kind for site in self.sites))

    @property
    def stride(self) -> Int[Tensor, " sites"]:
        """Numbers of units that agents move as one: 1/24 of a site, at least one unit."""
        return (self.units / 24).round().long().clamp_min(1)

    @property
    def dense(self) -> Int[Tensor, " sites"]:
        """The policy that keeps all units."""
        return self.units.clone()

    def removed(self, kept: Int[Tensor, "*batch sites"]) -> Int[Tensor, "*batch"]:
        """Number of parameters that a policy removes."""
        return self.total - self._at(self.kept_params, kept)

    def ratio(self, kept: Int[Tensor, "*batch sites"]) -> Float[Tensor, "*batch"]:
        """The pruning ratio of a policy."""
        return self.removed(kept).double() / self.total

    @property
    def units_by_name(self) -> dict[str, int]:
        """Number of units of each site."""
        return {site.name: site.units for site in self.sites}

    def policy(self, named: Mapping[str, int], units: Mapping[str, int] | None = None) -> list[int]:
        """The policy as a list, from the kept units of each site by name.

        Args:
            named: the kept units.
            units: of the sites of the space that the policy was made for; None: not compared.

        Raises:
            PPFError: a site is missing or unknown, keeps fewer than 0 or more than all units, or
                has other units in this space.
        """
        kept = [named.get(site.name, -1) for site in self.sites]
        same = units is None or units == self.units_by_name
        self.check_policy(kept if same and len(named) == len(kept) else [])
        return kept

    def saved(self, kept: Int[Tensor, "*batch sites"]) -> Float[Tensor, "*batch"]:
        """The share of the space's total cost that a policy saves; 0 if the total cost is 0."""
        whole = self.kept_cost[:, -1].sum().to(kept.device)
        return (whole - self._at(self.kept_cost, kept)).double() / whole.clamp_min(1)

    def _at(
        self, table: Int[Tensor, "sites levels"], kept: Int[Tensor, "*batch sites"]
    ) -> Int[Tensor, "*batch"]:
        """The sum of a table's entries over the sites of a policy."""
        sites = torch.arange(len(self), device=kept.device)
        return table.to(kept.device)[sites, kept].sum(-1)

    def check_policy(self, kept: Sequence[int]) -> None:
        """Raises PPFError unless `kept` has one number from 0 to `units` for every site."""
        fits = len(kept) == len(self) and all(
            0 <= k <= s.units for k, s in zip(kept, self.sites, strict=True)
        )
        if not fits:
            raise PPFError(
                f"the policy does not fit space={self.name} of this model ({len(self)} sites):"
                " give the model and the space that the policy was made for."
            )


def build_space(
    prunables: Iterable[Prunable],
    *,
    name: str,
    kinds: Annotated[Sequence[Kind], Field(min_length=1)],
    channel_multiple: Count,
    whole_sites: bool,
    query_heads: bool = False,
    stock: bool = False,
) -> Space:
    """Divides the prunable blocks of the given kinds into units.

    Args:
        prunables: the blocks of a model.
        name: name of the space.
        kinds: of the blocks that are pruned; "mlp" includes "experts".
        channel_multiple: number of FFN channels in one unit; others are one KV group or one expert.
        whole_sites: makes every block one unit, which is kept or removed (depth pruning).
        query_heads: a unit is one query head of every KV group, or a whole group (see `Site`).
        stock: all layers that stay keep the same numbers of units.

    Raises:
        PPFError: `channel_multiple` does not divide the width of an FFN, layers cannot be equal, or
            the model has no blocks of these kinds.
    """

    def site(block: Prunable) -> Site:
        if query_heads and not whole_sites and block.queries > 1:
            heads = block.heads or _queries_first(block)
            params = (block.params - block.shared) // block.queries
            units = len(heads) - 1
            return Site(block.layer, block.kind, units, 1, params, heads, block.shared)
        size = block.atoms if whole_sites else channel_multiple if block.kind == "mlp" else 1
        if block.atoms % size:
            raise PPFError(
                f"space.channel_multiple={channel_multiple} does not divide the FFN width"
                f" {block.atoms} of layer {block.layer}: give a divisor."
            )
        return Site(block.layer, block.kind, block.atoms // size, size, block.params * size)

    wanted = {*kinds} | ({"experts"} if "mlp" in kinds else set())
    blocks = [block for block in prunables if block.kind in wanted]
    sites = tuple(map(site, blocks))
    if not sites:
        raise PPFError(f"space={name} prunes blocks that this model lacks: give another space.")
    if not stock:
        return Space(sites, name)
    present, layers = {site.kind for site in sites}, {site.layer for site in sites}
    forms = {replace(site, layer=0) for site in sites}
    unequal = len(forms) > len(present) or len(sites) < len(present) * len(layers)
    if unequal or query_heads or present == {"attention"}:
        raise PPFError(
            "space=stock needs a model of equal layers, space.query_heads=false, and mlp in"
            " space.kinds: give these, or another space."
        )
    equal = next((x.equal for x in blocks if x.kind == "attention"), ())
    return Space(sites, name, stock=equal or tuple(range(1, sites[0].units + 1)))


def _queries_first(block: Prunable) -> Heads:
    groups, queries = block.atoms, block.queries
    few = ((number, 1) for number in range(1, groups))
    return ((0, 0), *few, *((groups, number) for number in range(1, queries + 1)))


def check_ratio(ratio: float) -> None:
    """Raises PPFError unless 0 ≤ ratio < 1."""
    if not 0 <= ratio < 1:
        raise PPFError(f"ratio={ratio} is out of range: give 0 ≤ ratio < 1, as in ratio=0.3.")


def new_policies(
    kept: Int[Tensor, "n sites"], known: Int[Tensor, "known sites"]
) -> Int[Tensor, "new sites"]:
    """The distinct rows of `kept` that are not rows of `known`, in the order of `kept`."""
    old = set(map(tuple, known.tolist()))
    rows = [row for row in dict.fromkeys(map(tuple, kept.tolist())) if row not in old]
    return kept.new_tensor(rows).reshape(-1, kept.shape[1])
