"""Guards against using a KV cache with another policy than the one that filled it."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from torch import nn
from transformers import Cache

from ppf.errors import PPFError


class CacheGuard:
    """Marks the KV caches that a model fills, and refuses them at another policy.

    If two policies keep the same number of heads, a cache of the wrong one has the right shape and
    would silently give wrong text. Caches are recognised by their type, since the name of the
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

    def _sign(self, module: nn.Module, inputs: Any, output: Mapping[str, Any]) -> None:
        for cache in _caches(output):
            cache.policy_mark = self._mark()  # type: ignore[attr-defined]


def _caches(named: Mapping[str, Any]) -> list[Cache]:
    return [value for value in named.values() if isinstance(value, Cache)]
