"""Schema of the keys that `export=huggingface` adds to config.json."""

from typing import Annotated

from pydantic import ConfigDict, StringConstraints

from ppf.ranges import Count
from ppf.records.values import Natural64, Record, Word
from ppf.space.sites import Kind

_Layer = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,4}$")]


class BlockRecord(Record):
    """Description of a block's projections; names are those within the decoder layer."""

    name: Word
    producers: dict[Word, Count]
    consumer: Word
    by_query: list[Word] = []  # missing in folders of earlier versions, as queries and ratio are
    columns: Count
    queries: Count = 1
    ratio: Word | None = None
    bypassed: list[Word]
    heads: Word | None
    biases: list[Natural64]
    empty: list[Natural64] = []  # missing in folders of earlier versions
    counted_by: Word


class ExportedConfig(Record):
    """The keys of a config.json that PPF added. transformers checks all others."""

    model_config = ConfigDict(extra="ignore")

    pruned_blocks: dict[Kind, BlockRecord]
    per_layer_config: dict[_Layer, dict[Word, Natural64]]
