"""What config.json of an exported folder says beyond the dense model's."""

from typing import Annotated, Literal

from pydantic import ConfigDict, StringConstraints

from ppf.records.values import Natural, Positive, Record, Word

_Layer = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,4}$")]


class Block(Record):
    """The projections of a block, by name within the decoder layer."""

    name: Word
    producers: dict[Word, Positive]
    consumer: Word
    columns: Positive
    bypassed: list[Word]
    heads: Word | None
    biases: list[Natural]
    counted_by: Word


class ExportedConfig(Record):
    """The part of a config.json that is not the family's; transformers checks the rest."""

    model_config = ConfigDict(extra="ignore")

    pruned_blocks: dict[Literal["attention", "mlp"], Block]
    per_layer_config: dict[_Layer, dict[Word, Natural]]
