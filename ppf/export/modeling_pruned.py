"""A pruned causal language model, whose layers differ in width.

`config.per_layer_config` holds the number of heads and FFN channels of each layer.
`config.pruned_blocks` lists the projections that have these widths.
"""

import logging
from typing import Any

import torch
from torch import nn
from transformers import LlamaForCausalLM as Base

from ppf.pruning.empty_block import EmptyBlock

# transformers warns of each width that it reads from a config of uneven layers. This code is made
# for such configs.
logging.getLogger("transformers.integrations.heterogeneity").setLevel(logging.ERROR)


class PrunedConfig(Base.config_class):  # type: ignore[valid-type, misc]
    """The dense model's config class; it makes transformers import this file before it reads."""


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
            for kind, block in config.pruned_blocks.items():
                left = getattr(config.per_layer_config[index], block["counted_by"])
                _narrow(layer, index, kind, block, left)
        self.post_init()


class PrunedForCausalLM(Narrowed, Base):
    """The pruned model; its base is the dense model's class."""

    config_class = PrunedConfig


def _narrow(layer: nn.Module, index: int, kind: str, block: dict[str, Any], left: int) -> None:
    """Narrows a block to `left` key/value heads or channels; 0: replaces it by an `EmptyBlock`."""
    consumer: Any = layer.get_submodule(block["consumer"])
    hidden, bias = consumer.out_features, index in block["biases"]
    if not left:
        vector = nn.Parameter(torch.zeros(hidden)) if bias else None
        layer.set_submodule(block["name"], EmptyBlock(index, kind == "attention", vector))
        for name in block["bypassed"]:
            layer.set_submodule(name, nn.Identity())
        return
    if block["heads"]:
        setattr(layer.get_submodule(block["name"]), block["heads"], left)
    layer.set_submodule(block["consumer"], nn.Linear(left * block["columns"], hidden, bias))
    for name, rows in block["producers"].items():
        dense: Any = layer.get_submodule(name)
        narrow = nn.Linear(dense.in_features, left * rows, dense.bias is not None)
        layer.set_submodule(name, narrow)
