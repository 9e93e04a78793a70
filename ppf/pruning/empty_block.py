"""What stands where a block has nothing left; exported models carry this file."""

from typing import Any

import torch
from torch import nn

_CACHE_NAMES = ("cache", "past_key_values", "layer_past")  # by transformers version and family


class EmptyBlock(nn.Module):
    """Stands for a block with nothing left: its output is the consumer's bias, or zero.

    An attention block still tells the KV cache how many tokens have passed, since positions and
    masks are counted by the first layer's cache. transformers takes a growing cache without numbers
    for one without tokens, so this one holds two numbers a token; a cache of fixed size that is
    there already keeps its shape.
    """

    bias: nn.Parameter | None

    def __init__(self, layer: int, attention: bool, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.layer, self.attention = layer, attention
        self.register_parameter("bias", bias)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Returns what the dense block would: for attention, (output, attention weights)."""
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
        """Heads and their size in this layer's cache, (1, 1) where it is still to be made."""
        made = self.layer < len(cache.layers) and cache.layers[self.layer].is_initialized
        return cache.layers[self.layer].keys.shape[1::2] if made else (1, 1)
