"""agent.json of a dynamic search."""

from typing import Annotated, Literal

from pydantic import Field

from ppf.records.policy import Config, Signatures
from ppf.records.space import Space
from ppf.records.values import Positive, Record, Share, SiteName

FORMAT = 1
WEIGHTS = "agent.safetensors"


class Agent(Record):
    """The contents of an agent.json; its weights lie beside it."""

    format: Literal[FORMAT]  # type: ignore[valid-type]
    signatures: Signatures
    config: Config
    space: Space
    units: dict[SiteName, Positive]
    ratios: Annotated[list[Share], Field(min_length=2, max_length=2)]
    weights: Literal[WEIGHTS]  # type: ignore[valid-type]
