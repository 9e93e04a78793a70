"""The module that replaces a block without units. Exported models contain a copy of this file."""

from typing import Any

import torch
from torch import nn

# They differ by family and version of transformers.
_CACHE_NAMES = ("cache", "past_key_values", "layer_past")


class EmptyBlock(nn.Module):
    """Replaces a block without units. Its output is the consumer's bias, or zero.

    An attention block still adds its tokens to the KV cache, because transformers computes
    positions and masks from the length of the first layer's cache. It adds placeholders, since a
    cache without elements would count as empty: one head of size 1, or the shape of an existing
    cache.

    Args:
        layer: index of the decoder layer.
        attention: whether it replaces an attention block.
        bias: bias of the consumer; None: zero.
    """

    bias: nn.Parameter | None

    def __init__(self, layer: int, attention: bool, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.layer, self.attention = layer, attention
        self.register_parameter("bias", bias)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Returns the output; an attention block returns (output, attention weights)."""
        output = torch.zeros_like(hidden_states)
        if self.bias is not None:
            output = output + self.bias
        if not self.attention:
            return output
        cache = next((kwargs[n] for n in _CACHE_NAMES if kwargs.get(n) is not None), None)
        if cache is not None:
            batch, tokens, _ = hidden_states.shape
            heads, size = self._shape(cache)
            placeholder = hidden_states.new_zeros(batch, heads, tokens, size)
            cache.update(placeholder, placeholder, self.layer)
        return output, None

    def _shape(self, cache: Any) -> tuple[int, int]:
        """Number and size of the heads in this layer's cache; (1, 1) if it does not exist yet."""
        made = self.layer < len(cache.layers) and cache.layers[self.layer].is_initialized
        return cache.layers[self.layer].keys.shape[1::2] if made else (1, 1)
