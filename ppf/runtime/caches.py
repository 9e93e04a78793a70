"""KV caches belong to the policy that filled them."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any

from torch import nn
from transformers import Cache

from ppf.errors import PPFError


class CacheGuard:
    """Marks the KV caches that a model fills, and refuses them under another policy.

    Where two policies keep equally many heads of a layer, the wrong cache would fit and give wrong
    text in silence. Arguments and outputs are recognised by type, since their name changes with the
    transformers version.

    Args:
        mark: tells the present policy; plain values, so that a deep copy of a cache stays valid.
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
                    " go back to that ratio, or start with an empty cache."
                )

    def _sign(self, module: nn.Module, inputs: Any, output: Mapping[str, Any]) -> None:
        for cache in _caches(output):
            cache.policy_mark = self._mark()  # type: ignore[attr-defined]


def _caches(named: Mapping[str, Any]) -> list[Cache]:
    return [value for value in named.values() if isinstance(value, Cache)]
