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
        heads, head, consumer = attention.num_heads, attention.head_dim, attention.out_proj
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        producers = tuple(Producer(projection, head) for projection in projections)
        block = index, "attention", heads, producers, consumer, head, layer, "self_attn"
        return Coupling(*block, heads="num_heads", equal=(heads,))

    def mlp(self, index: int, layer: Any) -> Coupling:
        channels, producers = layer.fc2.in_features, (Producer(layer.fc1, 1),)
        block = index, "mlp", channels, producers, layer.fc2, 1, layer, "fc2"
        return Coupling(*block, bypassed=("fc1",))

    def adds_to_stream(self, config: Any) -> bool:
        """False for OPT-350M, which has its norms after the blocks."""
        return config.do_layer_norm_before

    def final_norm(self, model: Any) -> nn.Module:
        """The norm (which OPT-350M does not have) and the projection (which only it has)."""
        decoder = model.get_decoder()
        there = (decoder.final_layer_norm, decoder.project_out)
        return nn.Sequential(*(module for module in there if module is not None))
