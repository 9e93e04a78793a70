"""Gemma 3 text models (270M and 1B). Models that also read images are not supported."""

from transformers import PreTrainedConfig

from ppf.llm.llama import LlamaAdapter


class GemmaAdapter(LlamaAdapter):
    """The projections are named as in Llama. A block's output passes a norm before it is added.

    Pruning needs no change for this norm: it maps the zeros of an empty block to zeros. The model
    passes local or global attention masks to its layers, so no entry is needed for them either.
    """

    model_types = ("gemma3_text",)

    def adds_to_stream(self, config: PreTrainedConfig) -> bool:
        return False
