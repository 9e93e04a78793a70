"""Schema of agent.json, which a search for all ratios writes."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from ppf.ranges import Count, Share
from ppf.records.policy import ConfigRecord, SignaturesRecord
from ppf.records.values import Natural64, Record, SiteName, Word

FORMAT = 1
AGENT = "agent.json"
WEIGHTS = "agent.safetensors"
_LARGEST_SUM = 2**62  # parameters are added up in 64 bits


class SiteRecord(Record):
    """Schema of `ppf.space.Site`."""

    layer: Annotated[int, Field(ge=0, lt=4096)]
    kind: Literal["attention", "mlp"]
    units: Annotated[int, Field(ge=1, le=2**20)]
    atoms_per_unit: Count
    params: Annotated[int, Field(ge=1, lt=2**42)]


class SpaceRecord(Record):
    """Schema of `ppf.space.Space`. `prices` may be null: the cost is then the parameters."""

    sites: Annotated[list[SiteRecord], Field(min_length=1, max_length=8192)]
    name: Word
    budget: Word
    prices: list[Natural64] | None

    @model_validator(mode="after")
    def _consistent(self) -> "SpaceRecord":
        if len({(site.layer, site.kind) for site in self.sites}) < len(self.sites):
            raise ValueError("should name each site only once")
        costs = [site.params for site in self.sites] if self.prices is None else self.prices
        if len(costs) != len(self.sites) or not any(costs):
            raise ValueError("should have one price for each site, and not only zeros")
        for each in (costs, [site.params for site in self.sites]):
            whole = sum(site.units * n for site, n in zip(self.sites, each, strict=True))
            if whole >= _LARGEST_SUM:
                raise ValueError("has more parameters than 64-bit integers can count")
        return self


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
