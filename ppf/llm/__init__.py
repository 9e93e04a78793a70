"""Language models and model families."""

from ppf.llm.adapter import Adapter, Coupling, Producer
from ppf.llm.attention import fast_attention
from ppf.llm.backward import differentiate
from ppf.llm.calls import LayerCalls
from ppf.llm.families import adapter_for
from ppf.llm.head import OutputHead, check_head, output_head
from ppf.llm.loading import (
    LanguageModel,
    check_window,
    dtype_name,
    load,
    load_description,
    resolve_dtype,
)
from ppf.llm.marked import scored_tokens, tokens_of
from ppf.llm.nll import window_nll
from ppf.llm.sources import local_folder
from ppf.llm.stream import LayerStream
