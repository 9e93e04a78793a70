"""A KV cache that grows without copies."""

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer


class GrowingLayer(DynamicLayer):
    """Keys and values of one layer, in tensors with room for more tokens.

    The layer of transformers copies all keys and values for every new token.
    """

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
        self._rooms = self._filled = self.keys, self.values

    def replace(self, keys: Tensor, values: Tensor) -> None:
        """Takes other keys and values, and frees the memory of the present ones."""
        self.keys, self.values = self._rooms = self._filled = keys, values

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        assert self.keys is not None and self.values is not None
        self.replace(self.keys, self.values)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Appends states [batch, heads, new tokens, size], and returns all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        length, new = self.keys.shape[2], key_states.shape[2]
        total = length + new
        # Other methods of transformers replace the keys and values.
        replaced = self.keys is not self._filled[0] or self.values is not self._filled[1]
        if replaced or total > self._rooms[0].shape[2]:
            self._rooms = _with_room(self.keys, total), _with_room(self.values, total)
        keys, values = self._rooms
        keys.narrow(2, length, new).copy_(key_states)
        values.narrow(2, length, new).copy_(value_states)
        self._filled = keys.narrow(2, 0, total), values.narrow(2, 0, total)
        self.keys, self.values = self._filled
        return self._filled


def _with_room(states: Tensor, total: int) -> Tensor:
    """A tensor that begins with `states` and has room for at least `total` tokens."""
    batch, heads, length, size = states.shape
    room = states.new_empty(batch, heads, total + max(_ROOM, total // 4), size)
    room[:, :, :length] = states
    return room


_ROOM = 64  # least number of tokens that a new tensor has room for
