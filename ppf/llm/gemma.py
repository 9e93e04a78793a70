"""Gemma 3, the text models (270M and 1B; what carries an image tower is of another family)."""

from transformers import PreTrainedConfig

from ppf.llm.llama import LlamaAdapter


class GemmaAdapter(LlamaAdapter):
    """Llama's form within a layer; a head's size is not tied to the hidden size.

    Norms before and after each block, and over single heads, touch no atom: a norm of zeros is
    zero, as from a masked block. Whether a layer attends locally is told to it from outside.
    """

    model_types = ("gemma3_text",)

    def adds_to_stream(self, config: PreTrainedConfig) -> bool:
        return False
