"""Qwen2, Qwen2.5 and Qwen3."""

from ppf.llm.llama import LlamaAdapter


class QwenAdapter(LlamaAdapter):
    """Llama's form; Qwen2 has biases on q, k, v, and Qwen3 one norm for all query or key heads."""

    model_types = ("qwen2", "qwen3")
