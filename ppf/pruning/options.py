"""What sites may keep under a budget of bytes: a number of units in a number format."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppf.errors import PPFError
from ppf.llm import LanguageModel
from ppf.pruning.costs import Bytes
from ppf.pruning.features import SiteFeatures
from ppf.pruning.live import Types
from ppf.pruning.prunable import PrunableModel
from ppf.pruning.rounding import BLOCK, BLOCK_BYTES
from ppf.pruning.rounding_sensitivity import RoundingLosses
from ppf.records.values import NumberFormat
from ppf.space import Site, Space, SteppedSpace

TYPES = tuple(BLOCK_BYTES)
_QUANTUM = 2  # bytes by which formats differ, for each block of 32 weights
_WHOLE = BLOCK_BYTES["f16"] // _QUANTUM  # levels of one unit in 16 bits


@dataclass(frozen=True)
class Options:
    """Maps a site's number of bytes to its best number of kept units and number format.

    Here a level is a number of bytes: level j is j / 32 of the bytes that one unit takes in 16
    bits. A site uses the option (kept units, number format) of lowest expected loss among those
    that its level is large enough for. Steps are the levels at which this option changes.

    Args:
        units: the space whose units are removed.
        steps: of each site, ascending.
        kept: units that each step keeps, as a tuple for each site.
        choice: position of each step's format in `TYPES`.
        prices: bytes of one level.
    """

    units: Space
    steps: tuple[tuple[int, ...], ...]
    kept: tuple[tuple[int, ...], ...]
    choice: tuple[tuple[int, ...], ...]
    prices: tuple[int, ...]

    @classmethod
    def of(
        cls,
        units: Space,
        prices: Sequence[int],
        losses: Float[Tensor, "sites types levels"],
        cost: Bytes,
    ) -> "Options":
        """The options with the least expected losses.

        Args:
            units: the space whose units are removed.
            prices: bytes of one unit in 16 bits, for each site.
            losses: expected losses (see `RoundingLosses`) of all number formats.
            cost: says what the policies may use.
        """
        found = [
            _best(row, site.units, cost)
            for row, site in zip(losses.tolist(), units.sites, strict=True)
        ]
        steps, kept, choice = (tuple(part) for part in zip(*found, strict=True))
        levels = tuple(price // _WHOLE for price in prices)
        return cls(units, steps, kept, choice, levels)

    @cached_property
    def space(self) -> SteppedSpace:
        """The space whose policies are levels: a level counts as a unit, a byte as a parameter."""
        sites = tuple(
            Site(site.layer, site.kind, _WHOLE * site.units, 1, price)
            for site, price in zip(self.units.sites, self.prices, strict=True)
        )
        return SteppedSpace(sites, self.units.name, "bytes", steps=self.steps)

    def policy(self, levels: Sequence[int]) -> tuple[list[int], list[NumberFormat]]:
        """Kept units and formats. A site at its highest level is not changed at all."""
        numbers = self._number.gather(1, torch.tensor(levels)[:, None])[:, 0].tolist()
        kept = [row[n] for row, n in zip(self.kept, numbers, strict=True)]
        types = [TYPES[row[n]] for row, n in zip(self.choice, numbers, strict=True)]
        for number, (level, site) in enumerate(zip(levels, self.units.sites, strict=True)):
            if level == _WHOLE * site.units:
                kept[number], types[number] = site.units, "f16"
        return kept, types

    def features(self, units: SiteFeatures, rounding: RoundingLosses) -> SiteFeatures:
        """Features of the levels.

        Args:
            units: features of the units.
            rounding: expected losses of rounding.
        """
        noise = rounding.noise[..., None]
        errors = units.errors[:, None]
        # The noise is in proportion to the signal that pruning leaves.
        noisy = errors + noise * (1 - errors)
        retained = units.retained[:, None].expand_as(noisy)
        return SiteFeatures(
            self.space,
            self._by_level(noisy),
            self._by_level(retained),
            units.energy,
            self._by_level(rounding.losses),
            units.traits,
        )

    @cached_property
    def _number(self) -> Int[Tensor, "sites levels"]:
        """Position of each level's option among the steps."""
        levels = torch.arange(int(self.space.units.max()) + 1).repeat(len(self.steps), 1)
        ends = [
            torch.searchsorted(torch.tensor(steps), row, right=True)
            for steps, row in zip(self.steps, levels, strict=True)
        ]
        return torch.stack(ends).clamp(min=1) - 1

    def _by_level(self, table: Float[Tensor, "sites types units"]) -> Float[Tensor, "sites levels"]:
        """A table of options as a table of levels. Levels below the first step have no option."""
        rows = []
        for part, steps, kept, choice, number in zip(
            table, self.steps, self.kept, self.choice, self._number, strict=True
        ):
            row = part[torch.tensor(choice), torch.tensor(kept)][number]
            row[: steps[0]] = part[0, 0]
            rows.append(row)
        return torch.stack(rows)


def _best(
    losses: Sequence[Sequence[float]], units: int, cost: Bytes
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Levels, kept units and formats of the options that are better than all cheaper options."""
    every = sorted(
        (kept * BLOCK_BYTES[type] // _QUANTUM, losses[number][kept], kept, number)
        for number, type in enumerate(TYPES)
        if type in cost.types
        for kept in range(0 if cost.prune else units, units + 1)
    )
    best, least = list[tuple[int, int, int]](), math.inf
    for level, loss, kept, type in every:
        if loss < least:
            best.append((level, kept, type))
            least = loss
    levels, units_left, choice = zip(*best, strict=True)
    return levels, units_left, choice


@dataclass(frozen=True)
class ByteModel(PrunableModel):
    """A model whose policies are levels of bytes (see `Options`).

    Args:
        options: the kept units and format of each level.
    """

    options: Options

    def decode(self, kept: Sequence[int]) -> tuple[Sequence[int], Types]:
        return self.options.policy(kept)


def check_blocks(lm: LanguageModel, space: Space) -> None:
    """Raises PPFError if a policy could cut a row of a matrix inside a quantisation block.

    It also refuses families whose FFN block is only the consumer, such as OPT: the block cannot be
    run with other weights.
    """
    sites, couplings = space.sites, lm.couplings
    if any(c.block is c.consumer for c in couplings):
        family = lm.model.config.model_type
        raise PPFError(f"budget=bytes does not support {family}: give another budget or model.")
    if not space.even:
        raise PPFError("budget=bytes removes whole KV groups only: give space.query_heads=false.")
    for site, index in zip(sites, lm.coupling_indices(sites), strict=True):
        coupling = couplings[index]
        rows = [producer.linear.in_features for producer in coupling.producers]
        rows.append(coupling.columns * site.atoms_per_unit)
        if any(length % BLOCK for length in rows):
            raise PPFError(
                f"budget=bytes quantises blocks of {BLOCK} weights, but the row length of"
                f" {site.name} is not a multiple of {BLOCK} at every width: give space=mlp and a"
                f" space.channel_multiple that is a multiple of {BLOCK}."
            )
