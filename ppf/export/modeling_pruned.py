"""A pruned causal language model, whose layers differ in width.

`config.per_layer_config` holds the number of heads, and of FFN channels or experts, of each layer.
`config.pruned_blocks` lists the projections that have these widths, and the layers that lack a
block.
"""

import logging
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM
from transformers import LlamaForCausalLM as Base
from transformers import LlamaModel as BaseModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ppf.llm.experts import with_projections
from ppf.pruning.empty_block import EmptyBlock

# transformers warns of each width that it reads from a config of uneven layers. This code is made
# for such configs.
logging.getLogger("transformers.integrations.heterogeneity").setLevel(logging.ERROR)


class PrunedConfig(Base.config_class):  # type: ignore[valid-type, misc]
    """The dense model's config class. It exists so that transformers imports this file first."""


class EmptyAttention(EmptyBlock):
    """An attention block without units, which still calls the attention interface.

    vLLM finds the attention layers of a model by this call. It gives this one a KV cache of one
    group, as `config.per_layer_config` says. The group is zero, and so is its attention output.

    Args:
        config: of the model.
        layer: index of the decoder layer.
        heads: query heads of the group.
        bias: bias of the consumer; None: zero.
    """

    is_causal = True

    def __init__(self, config: Any, layer: int, heads: int, bias: nn.Parameter | None) -> None:
        super().__init__(layer, True, bias)
        self.config, self.layer_idx, self.num_key_value_groups = config, layer, heads

    def forward(
        self,
        hidden_states: torch.Tensor,
        *args: Any,
        attention_mask: Any = None,
        position_embeddings: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Returns (output, None)."""
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, ALL_ATTENTION_FUNCTIONS["sdpa"]
        )
        batch, tokens, _ = hidden_states.shape
        heads, size = self.num_key_value_groups, self.config.head_dim
        query = hidden_states.new_zeros(batch, heads, tokens, size)
        key = hidden_states.new_zeros(batch, 1, tokens, size)
        attend(self, query, key, key, None, scaling=1.0)
        return super().forward(hidden_states, *args, **kwargs)


class Narrowed(nn.Module):
    """Mixin for a dense model's class: builds the dense model, then narrows every block."""

    get_decoder: Any
    post_init: Any

    def __init__(self, config: Any) -> None:
        widths = config.to_dict()["per_layer_config"]
        config.per_layer_config = None  # so that the base class builds the dense model
        super().__init__(config)
        config.per_layer_config = widths
        for index, layer in enumerate(self.get_decoder().layers):
            if "experts" in config.pruned_blocks:
                with_projections(layer, config.pruned_blocks["experts"]["name"])
            names = {name for name, _ in layer.named_modules()}
            for kind, block in config.pruned_blocks.items():
                if block["consumer"] not in names:
                    continue  # the layer has a block of another kind
                if index in block.get("empty", ()):  # missing in folders of earlier versions
                    _remove(layer, index, kind, block, config)
                else:
                    own = config.per_layer_config[index]
                    left = getattr(own, block["counted_by"])
                    dense = block.get("queries", 1)  # missing in folders of earlier versions
                    heads = own.num_attention_heads // left if dense > 1 else 1
                    _narrow(layer, index, block, left, (heads, dense))
        self.post_init()


class PrunedModel(Narrowed, BaseModel):
    """The pruned model without its head, as vLLM builds it."""

    config_class = PrunedConfig


class PrunedForCausalLM(Narrowed, Base):
    """The pruned model; its base is the dense model's class."""

    config_class = PrunedConfig


# Otherwise pipelines log that they do not support the class.
AutoModelForCausalLM.register(PrunedConfig, PrunedForCausalLM, exist_ok=True)


def _remove(layer: nn.Module, index: int, kind: str, block: dict[str, Any], config: Any) -> None:
    """Replaces a block by an empty one."""
    consumer: Any = layer.get_submodule(block["consumer"])
    has_bias = index in block["biases"]
    bias = nn.Parameter(torch.zeros(consumer.out_features)) if has_bias else None
    if kind == "attention":
        heads = config.per_layer_config[index].num_attention_heads
        empty: EmptyBlock = EmptyAttention(config, index, heads, bias)
    else:
        empty = EmptyBlock(index, False, bias)
    layer.set_submodule(block["name"], empty)
    for name in block["bypassed"]:
        layer.set_submodule(name, nn.Identity())


def _narrow(
    layer: nn.Module, index: int, block: dict[str, Any], left: int, queries: tuple[int, int]
) -> None:
    """Narrows a block.

    Args:
        left: key/value heads, channels or experts that it keeps.
        queries: query heads of each key/value head, here and in the dense model.
    """
    consumer: Any = layer.get_submodule(block["consumer"])
    hidden, bias = consumer.out_features, index in block["biases"]
    kept, whole = queries
    if block["heads"]:
        setattr(layer.get_submodule(block["name"]), block["heads"], left)
    if block.get("ratio"):
        setattr(layer.get_submodule(block["name"]), block["ratio"], kept)
    _resize(consumer, hidden, left * block["columns"] * kept // whole, bias)
    for name, rows in block["producers"].items():
        if name in block.get("by_query", ()):
            rows = rows * kept // whole
        dense: Any = layer.get_submodule(name)
        _resize(dense, left * rows, dense.in_features, dense.bias is not None)


def _resize(linear: nn.Linear, rows: int, columns: int, bias: bool) -> None:
    linear.out_features, linear.in_features = rows, columns
    linear.weight = nn.Parameter(linear.weight.new_empty(rows, columns))
    added = nn.Parameter(linear.weight.new_empty(rows)) if bias else None
    linear.register_parameter("bias", added)
