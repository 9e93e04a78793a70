"""Gemma 3 text models (270M and 1B). Models that also read images are not supported."""

from torch import nn
from transformers import PreTrainedConfig

from ppf.llm.adapter import Coupling
from ppf.llm.llama import LlamaAdapter


class GemmaAdapter(LlamaAdapter):
    """The projections are named as in Llama. A block's output passes a norm before it is added.

    The norm maps the zeros of an empty block to zeros. It would scale a bias of the compensation to
    full strength, so empty blocks get none. The model passes local or global attention masks to its
    layers, so no entry is needed for them either.
    """

    model_types = ("gemma3_text",)

    def adds_to_stream(self, config: PreTrainedConfig) -> bool:
        return False

    def norm_behind(self, coupling: Coupling) -> nn.Module:
        block = "attention" if coupling.kind == "attention" else "feedforward"
        norm: nn.Module = getattr(coupling.parent, f"post_{block}_layernorm")
        return norm
