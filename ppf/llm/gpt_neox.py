"""GPT-NeoX: Pythia and GPT-NeoX-20B."""

from typing import Any

from torch import nn

from ppf.llm.adapter import Adapter, Coupling, Producer


class GPTNeoXAdapter(Adapter):
    """Multi-head attention with one fused projection, which has q, k and v head by head."""

    model_types = ("gpt_neox",)
    kv_heads = "num_attention_heads"

    def attention(self, index: int, layer: Any) -> Coupling:
        attention = layer.attention
        head, consumer = attention.head_size, attention.dense
        heads, fused = consumer.in_features // head, Producer(attention.query_key_value, 3 * head)
        block = index, "attention", heads, (fused,), consumer, head, layer, "attention"
        return Coupling(*block, equal=(heads,))  # the config has no size of heads

    def mlp(self, index: int, layer: Any) -> Coupling:
        first, consumer = layer.mlp.dense_h_to_4h, layer.mlp.dense_4h_to_h
        channels, producers = consumer.in_features, (Producer(first, 1),)
        return Coupling(index, "mlp", channels, producers, consumer, 1, layer, "mlp")

    def final_norm(self, model: Any) -> nn.Module:
        return model.gpt_neox.final_layer_norm
