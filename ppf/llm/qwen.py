"""Qwen2, Qwen2.5 and Qwen3."""

from ppf.llm.llama import LlamaAdapter


class QwenAdapter(LlamaAdapter):
    """The projections are named as in Llama. Qwen2 has biases on q, k and v.

    Qwen3 has norms over single query and key heads.
    """

    model_types = ("qwen2", "qwen3")
