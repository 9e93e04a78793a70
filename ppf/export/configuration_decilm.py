"""The config of a DeciLM model, as vLLM reads it."""

from typing import Any

from transformers import LlamaConfig


class Block(dict[str, Any]):
    """A dictionary, as JSON holds it, whose keys are also attributes, as vLLM reads them."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


class DeciLMConfig(LlamaConfig):
    """A Llama's config with one entry for each layer in `block_configs`."""

    model_type = "nemotron-nas"

    block_configs: list | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self.block_configs = [
            Block({part: Block(values) for part, values in block.items()})
            for block in self.block_configs or []
        ]
        super().__post_init__(**kwargs)
