"""Schema of a dynamic search's agent.json."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from ppf.ranges import Count, Share
from ppf.records.policy import ConfigRecord, SignaturesRecord
from ppf.records.space import SpaceRecord
from ppf.records.values import Record, SiteName

FORMAT = 1
AGENT = "agent.json"
WEIGHTS = "agent.safetensors"


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
