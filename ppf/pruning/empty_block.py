"""What stands where a block has nothing left; exported models carry this file."""

from typing import Any

import torch
from torch import nn

_CACHE_NAMES = ("cache", "past_key_values", "layer_past")  # by transformers version and family


class EmptyBlock(nn.Module):
    """Stands for a block with nothing left: its output is the consumer's bias, or zero.

    An attention block still tells the KV cache how many tokens have passed, since positions and
    masks are counted by the first layer's cache. transformers takes a cache without numbers for one
    without tokens, so this one holds two numbers a token.
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
            placeholder = hidden_states.new_zeros(batch, 1, tokens, 1)
            cache.update(placeholder, placeholder, self.layer)
        return output, None
