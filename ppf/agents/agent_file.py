"""Schema of agent.json, which a search for all ratios writes."""

from itertools import pairwise
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ppf.ranges import Count, Share
from ppf.records.policy import ConfigRecord, SignaturesRecord
from ppf.records.values import Natural64, Record, SiteName, Word
from ppf.space.sites import Kind

FORMAT = 1
AGENT = "agent.json"
WEIGHTS = "agent.safetensors"
_Two = Annotated[list[Natural64], Field(min_length=2, max_length=2)]
_LARGEST_SUM = 2**62  # parameters are added up in 64 bits


class SiteRecord(Record):
    """Schema of `ppf.space.Site`."""

    layer: Annotated[int, Field(ge=0, lt=4096)]
    kind: Kind
    units: Annotated[int, Field(ge=1, le=2**20)]
    atoms_per_unit: Count
    params: Annotated[int, Field(ge=1, lt=2**42)]
    heads: list[_Two] = []  # missing in agents of earlier versions
    shared: Annotated[int, Field(ge=0, lt=2**42)] = 0

    @model_validator(mode="after")
    def _nested(self) -> "SiteRecord":
        """Each level has one more KV group than the one below, or one more head in each group."""
        added = [(g - f, q - p) for (f, p), (g, q) in pairwise([[0, 0], *self.heads])]
        first, later = added[:2], added[2:]
        chained = first == [(0, 0), (1, 1)] and len(added) == self.units + 1
        if self.heads and not (chained and {(0, 1), (1, 0)} >= set(later)):
            raise ValueError("should add one KV group or one query head of each at every level")
        return self


class SpaceRecord(Record):
    """Schema of `ppf.space.Space`. `prices` may be null: the cost is then the parameters."""

    sites: Annotated[list[SiteRecord], Field(min_length=1, max_length=8192)]
    name: Word
    budget: Word
    prices: list[Natural64 | _Two] | None
    stock: list[Natural64] = []  # missing in agents of earlier versions

    @model_validator(mode="after")
    def _consistent(self) -> "SpaceRecord":
        if len({(site.layer, site.kind) for site in self.sites}) < len(self.sites):
            raise ValueError("should name each site only once")
        params = [[s.params, s.shared] if s.heads else s.params for s in self.sites]
        costs = params if self.prices is None else self.prices
        if len(costs) != len(self.sites) or all(price in (0, [0, 0]) for price in costs):
            raise ValueError("should have one price for each site, and not only zeros")
        for each in (costs, params):
            if sum(map(_whole, self.sites, each)) >= _LARGEST_SUM:
                raise ValueError("has more parameters than 64-bit integers can count")
        return self


def _whole(site: SiteRecord, price: int | list[int]) -> int:
    """The cost of all units of a site."""
    if bool(site.heads) != isinstance(price, list):
        raise ValueError("should have two prices for each site of query heads, and else one")
    if isinstance(price, int):
        return site.units * price
    (groups, queries), (head, group) = site.heads[-1], price
    return groups * (queries * head + group)


class AgentRecord(Record):
    """The contents of an agent.json. The weights are in a file beside it."""

    format: Literal[FORMAT]  # type: ignore[valid-type]
    signatures: SignaturesRecord
    config: ConfigRecord
    space: SpaceRecord
    units: dict[SiteName, Count]
    ratios: Annotated[list[Share], Field(min_length=2, max_length=2)]
    weights: Literal[WEIGHTS]  # type: ignore[valid-type]


def agent_folder(path: str | Path) -> Path:
    """The folder of a search, which may be given as its agent.json."""
    return Path(path).parent if Path(path).is_file() else Path(path)
