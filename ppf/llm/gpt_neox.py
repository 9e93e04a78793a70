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
        head = attention.head_size
        return Coupling(
            layer=index,
            kind="attention",
            atoms=attention.dense.in_features // head,
            producers=(Producer(attention.query_key_value, 3 * head),),
            consumer=attention.dense,
            columns=head,
            parent=layer,
            attribute="attention",
        )

    def mlp(self, index: int, layer: Any) -> Coupling:
        mlp = layer.mlp
        return Coupling(
            layer=index,
            kind="mlp",
            atoms=mlp.dense_4h_to_h.in_features,
            producers=(Producer(mlp.dense_h_to_4h, 1),),
            consumer=mlp.dense_4h_to_h,
            columns=1,
            parent=layer,
            attribute="mlp",
        )

    def final_norm(self, model: Any) -> nn.Module:
        return model.gpt_neox.final_layer_norm
