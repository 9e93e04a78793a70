"""OPT."""

from typing import Any

from torch import nn

from ppf.llm.adapter import Adapter, Coupling, Producer


class OPTAdapter(Adapter):
    """Multi-head attention with an attribute that counts its heads, and an FFN of two projections.

    The FFN is not a module: its projections `fc1` and `fc2` are attributes of the decoder layer.
    """

    model_types = ("opt",)
    kv_heads = "num_attention_heads"
    channels = "ffn_dim"

    def attention(self, index: int, layer: Any) -> Coupling:
        attention = layer.self_attn
        head = attention.head_dim
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        return Coupling(
            layer=index,
            kind="attention",
            atoms=attention.num_heads,
            producers=tuple(Producer(projection, head) for projection in projections),
            consumer=attention.out_proj,
            columns=head,
            parent=layer,
            attribute="self_attn",
            heads="num_heads",
        )

    def mlp(self, index: int, layer: Any) -> Coupling:
        return Coupling(
            layer=index,
            kind="mlp",
            atoms=layer.fc2.in_features,
            producers=(Producer(layer.fc1, 1),),
            consumer=layer.fc2,
            columns=1,
            parent=layer,
            attribute="fc2",
            bypassed=("fc1",),
        )

    def adds_to_stream(self, config: Any) -> bool:
        """False for OPT-350M, which has its norms after the blocks."""
        return config.do_layer_norm_before

    def final_norm(self, model: Any) -> nn.Module:
        """The norm (which OPT-350M does not have) and the projection (which only it has)."""
        decoder = model.get_decoder()
        there = (decoder.final_layer_norm, decoder.project_out)
        return nn.Sequential(*(module for module in there if module is not None))
