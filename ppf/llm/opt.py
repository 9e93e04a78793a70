"""OPT."""

from typing import Any

from torch import nn

from ppf.llm.adapter import Adapter, Coupling, Producer


class OPTAdapter(Adapter):
    """Multi-head attention, whose module counts its heads itself, and an FFN of two matrices.

    The FFN is no module of its own: `fc1` and `fc2` lie in the decoder layer.
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
        """350M normalises behind its blocks."""
        return config.do_layer_norm_before

    def final_norm(self, model: Any) -> nn.Module:
        """Either may be absent: 350M has no norm there, the others no projection."""
        decoder = model.get_decoder()
        there = (decoder.final_layer_norm, decoder.project_out)
        return nn.Sequential(*(module for module in there if module is not None))
