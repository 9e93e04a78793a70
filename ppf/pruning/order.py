"""Orders of the atoms of each site, and of the query heads of its KV groups."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from ppf.llm import Coupling, LanguageModel
from ppf.pruning.statistics import expand
from ppf.space import Prunable, Space
from ppf.space.sites import Heads

_SMALLEST = 1e-30  # smallest divisor; a site without importance retains 0


@dataclass(frozen=True)
class Order:
    """How the atoms of a coupling are sorted.

    If query heads are units, the heads of each KV group are sorted too. Each step of a chain
    removes the last head of every group that is left, or the last group. The heads of a level are
    then a part of each group's rows. Levels are computed for columns in the chain's order, in which
    the heads of a level come first.

    Args:
        atoms: from most to least important.
        heads: query heads, group after group in the order of `atoms`, and in each group from most
            to least important; None: query heads are no units.
        nested: positions in `heads`, from the head that goes last to the one that goes first.
        chain: what each level keeps.
    """

    atoms: Int[Tensor, " atoms"]
    heads: Int[Tensor, " heads"] | None = None
    nested: Int[Tensor, " heads"] | None = None
    chain: Heads = ()

    @classmethod
    def of(cls, coupling: Coupling, scores: Float[Tensor, " _"]) -> "Order":
        """The order of scores as `ppf.pruning.importance.score_coupling` returns them."""
        if len(scores) == coupling.atoms:
            return cls(scores.argsort(descending=True, stable=True))
        grouped = scores.view(coupling.atoms, coupling.queries)
        atoms = grouped.amax(1).argsort(descending=True, stable=True)
        within = grouped[atoms].argsort(dim=1, descending=True, stable=True)
        heads = (atoms[:, None] * coupling.queries + within).flatten()
        steps = scores[heads].view_as(grouped).floor()
        left = [steps >= step for step in range(int(steps.max()) + 1, -1, -1)]
        chain = tuple((int(x.any(1).sum()), int(x[0].sum())) for x in left)
        return cls(atoms, heads, scores[heads].argsort(descending=True, stable=True), chain)

    @property
    def inverse(self) -> "Order":
        """The order that undoes this one."""
        heads = None if self.heads is None else self.heads.argsort()
        return replace(self, atoms=self.atoms.argsort(), heads=heads)

    def rows(self, size: int, *, by_query: bool) -> Int[Tensor, " rows"]:
        """The original rows or columns of a matrix, in this order.

        Args:
            size: number of rows of an atom.
            by_query: whether they are those of its query heads.
        """
        if self.heads is None or not by_query:
            return expand(self.atoms, size)
        return expand(self.heads, size * len(self.atoms) // len(self.heads))

    def columns(self, size: int) -> Int[Tensor, " columns"]:
        """The original columns of the consumer, in the order of the chain.

        Args:
            size: number of columns of an atom.
        """
        return self.nest(self.rows(size, by_query=True))

    def nest(self, x: Shaped[Tensor, "*rows columns"]) -> Shaped[Tensor, "*rows columns"]:
        """Columns in the order of the chain, from those in this order."""
        if self.nested is None:
            return x
        parts = x.unflatten(-1, (len(self.nested), -1))
        return parts.index_select(-2, self.nested.to(x.device)).flatten(-2)

    def unnest(self, x: Float[Tensor, "*rows width"], columns: int) -> Float[Tensor, "*rows width"]:
        """The inverse of `nest` for the leading ones of `columns` columns."""
        if self.nested is None or not x.shape[-1]:
            return x
        kept = x.shape[-1] * len(self.nested) // columns
        parts, place = x.unflatten(-1, (kept, -1)), self.nested[:kept].argsort()
        return parts.index_select(-2, place.to(x.device)).flatten(-2)


def orders_of(lm: LanguageModel, scores: Sequence[Float[Tensor, " _"]]) -> list[Order]:
    """The order of each coupling's atoms."""
    return [Order.of(*pair) for pair in zip(lm.couplings, scores, strict=True)]


def ordered(lm: LanguageModel, orders: Sequence[Order]) -> list[Prunable]:
    """The prunable blocks, as `build_space` takes them, with what each level keeps."""
    pairs = zip(lm.couplings, orders, strict=True)
    return [replace(coupling.prunable, heads=order.chain) for coupling, order in pairs]


def retained_importance(
    lm: LanguageModel, space: Space, scores: Sequence[Float[Tensor, " _"]]
) -> Float[Tensor, "sites levels"]:
    """The share of a site's importance that its first k units have, [site, k]."""
    shares = []
    for site, index in zip(space.sites, lm.coupling_indices(space.sites), strict=True):
        whole = nn.functional.pad(scores[index].sort(descending=True).values.cumsum(0), (1, 0))
        kept = [groups * queries for groups, queries in site.heads]
        levels = whole[kept] if kept else whole[:: site.atoms_per_unit]
        shares.append(levels / whole[-1].clamp_min(_SMALLEST))
    return nn.utils.rnn.pad_sequence(shares, True)
