"""KV caches: one that grows without copies, and a guard against caches of another policy."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from ppf.errors import PPFError


class CacheGuard:
    """Marks the KV caches that a model fills, and refuses them under another policy.

    If two policies keep the same number of heads, a cache of the wrong policy has the right shape
    and would silently give wrong text. Caches are recognised by their type, since the name of the
    argument depends on the transformers version.

    Args:
        mark: returns an identifier of the present policy, made of plain values. Deep copies of a
            cache then keep a valid mark.
    """

    def __init__(self, model: nn.Module, mark: Callable[[], Hashable]) -> None:
        self._mark = mark
        model.register_forward_pre_hook(self._check, with_kwargs=True)
        model.register_forward_hook(self._sign)

    def _check(self, module: nn.Module, inputs: Any, keywords: Mapping[str, Any]) -> None:
        for cache in _caches(keywords):
            filled = int(cache.get_seq_length()) > 0
            if filled and getattr(cache, "policy_mark", None) != self._mark():
                raise PPFError(
                    "this KV cache was filled at another pruning ratio or by another model:"
                    " set that ratio again, or start with an empty cache."
                )

    def _sign(self, module: nn.Module, inputs: Any, output: Any) -> None:
        for cache in _caches(output):
            cache.policy_mark = self._mark()  # type: ignore[attr-defined]


def _caches(values: Mapping[str, Any] | tuple[Any, ...]) -> list[Cache]:
    every = values.values() if isinstance(values, Mapping) else values
    return [value for value in every if isinstance(value, Cache)]


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
