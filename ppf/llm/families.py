"""The supported model families."""

from transformers import PreTrainedConfig

from ppf.errors import PPFError
from ppf.llm.adapter import Adapter
from ppf.llm.gemma import GemmaAdapter
from ppf.llm.gpt_neox import GPTNeoXAdapter
from ppf.llm.llama import LlamaAdapter
from ppf.llm.mixtures import GptOssAdapter, MixtureAdapter, OlmoeAdapter
from ppf.llm.opt import OPTAdapter

ADAPTERS: tuple[type[Adapter], ...] = (
    LlamaAdapter,
    MixtureAdapter,
    OlmoeAdapter,
    GptOssAdapter,
    GemmaAdapter,
    OPTAdapter,
    GPTNeoXAdapter,
)


def adapter_for(config: PreTrainedConfig) -> Adapter:
    """The adapter for a model's family.

    Raises:
        PPFError: no adapter serves `config.model_type`.
    """
    model_type = config.model_type
    for adapter in ADAPTERS:
        if model_type in adapter.model_types:
            return adapter()
    known = ", ".join(name for adapter in ADAPTERS for name in adapter.model_types)
    raise PPFError(
        f"model family '{model_type}' is not supported: give a model of {known}, or add an adapter"
        " as docs/extend/family.md describes."
    )
