"""Llama 1-3, Mistral, Qwen 2 and 3, and models of their architecture: SmolLM2, TinyLlama."""

from typing import Any, ClassVar

from torch import nn

from ppf.llm.adapter import Adapter, Coupling, Producer


class LlamaAdapter(Adapter):
    """Separate q, k, v, o projections (grouped or multi-head) and a gated FFN.

    Qwen 2 has biases on q, k and v. Qwen 3 has norms over single query and key heads.
    """

    model_types: ClassVar[tuple[str, ...]] = ("llama", "mistral", "qwen2", "qwen3")

    def attention(self, index: int, layer: Any) -> Coupling:
        attention = layer.self_attn
        head = attention.head_dim
        groups = attention.k_proj.out_features // head
        rows = attention.q_proj.out_features // groups
        producers = (
            Producer(attention.q_proj, rows, by_query=True),
            Producer(attention.k_proj, head),
            Producer(attention.v_proj, head),
        )
        block = index, "attention", groups, producers, attention.o_proj, rows, layer, "self_attn"
        queries, config = rows // head, attention.config
        divides = hasattr(config, "validate_architecture")  # the hidden size by the heads
        equal = [
            n for n in range(1, groups + 1) if not divides or not config.hidden_size % (n * queries)
        ]
        return Coupling(*block, queries=queries, ratio="num_key_value_groups", equal=tuple(equal))

    def mlp(self, index: int, layer: Any) -> Coupling:
        mlp = layer.mlp
        producers = (Producer(mlp.gate_proj, 1), Producer(mlp.up_proj, 1))
        channels = mlp.down_proj.in_features
        return Coupling(index, "mlp", channels, producers, mlp.down_proj, 1, layer, "mlp")

    def final_norm(self, model: Any) -> nn.Module:
        return model.model.norm
