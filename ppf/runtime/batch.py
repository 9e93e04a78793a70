"""Sequences that share every forward pass, and can join or leave between two passes."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import pad
from transformers import Cache, PreTrainedModel

from ppf.runtime.caches import GrowingLayer


class DecodingBatch:
    """Sequences that one policy generates, and their KV cache.

    Shorter sequences are padded on the left. The continuous batching of transformers cannot be used
    here, because its paged cache needs the same number of KV heads in every layer.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        # The name of the argument depends on the version of transformers.
        named = inspect.signature(model.forward).parameters
        self._cache_name = "cache" if "cache" in named else "past_key_values"
        self._cache: Any = None  # a Cache whose layers have keys and values; None: no sequence
        self._mask = torch.ones(0, 0, dtype=torch.long, device=model.device)

    @torch.inference_mode()
    def join(self, ids: Int[Tensor, " tokens"], copies: int) -> Float[Tensor, " vocabulary"]:
        """Adds `copies` sequences that begin with a prompt, as the last rows.

        Returns:
            The logits of the token that follows the prompt.
        """
        cache = Cache(layer_class_to_replicate=GrowingLayer)
        mask = torch.ones(1, len(ids), dtype=torch.long, device=self._model.device)
        logits = self._forward(ids[None].to(mask.device), mask, cache)
        if copies > 1:
            cache.batch_repeat_interleave(copies)
        self._merge(cache, mask.repeat(copies, 1))
        return logits[0]

    @torch.inference_mode()
    def step(self, tokens: Sequence[int]) -> Float[Tensor, "rows vocabulary"]:
        """Appends one token to every sequence, and returns the logits of the next ones."""
        assert self._cache is not None
        self._mask = pad(self._mask, (0, 1), value=1)
        ids = torch.tensor(tokens, device=self._mask.device)[:, None]
        return self._forward(ids, self._mask, self._cache)

    @torch.inference_mode()
    def keep(self, rows: Sequence[int]) -> None:
        """Removes all sequences but the given ones."""
        if not rows:
            self._cache, self._mask = None, self._mask[:0, :0]
            return
        assert self._cache is not None
        index = torch.tensor(rows)  # on the CPU, since layers may lie on several GPUs
        self._cache.batch_select_indices(index)
        self._mask = self._mask[index]
        common = int(self._mask.argmax(1).min())  # padding that all rows have
        self._mask = self._mask[:, common:]
        for layer in self._cache.layers:
            layer.replace(layer.keys[:, :, common:], layer.values[:, :, common:])

    def _forward(
        self, ids: Int[Tensor, "rows new"], mask: Int[Tensor, "rows tokens"], cache: Cache
    ) -> Float[Tensor, "rows vocabulary"]:
        positions = mask.cumsum(1)[:, -ids.shape[1] :] - 1
        padded = bool((mask == 0).any())
        output = self._model(
            ids,
            attention_mask=mask if padded else None,  # attention without a mask is faster
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_name: cache},
        )
        return output.logits[:, -1]

    def _merge(self, cache: Any, mask: Int[Tensor, "rows tokens"]) -> None:
        if self._cache is None:
            self._cache, self._mask = cache, mask
            return
        length = max(self._mask.shape[1], mask.shape[1])
        pairs = list(zip(self._cache.layers, cache.layers, strict=True))
        # The cache changes only when all layers are merged: memory may run out before.
        keys, values = (
            [torch.cat([_padded(getattr(x, part), 2, length) for x in pair]) for pair in pairs]
            for part in ("keys", "values")
        )
        self._mask = torch.cat([_padded(x, 1, length) for x in (self._mask, mask)])
        for (mine, _), merged_keys, merged_values in zip(pairs, keys, values, strict=True):
            mine.replace(merged_keys, merged_values)


def _padded(tensor: Tensor, dimension: int, length: int) -> Tensor:
    """The tensor with zeros in front, so that a dimension has the given length."""
    behind = (0, 0) * (tensor.dim() - dimension - 1)
    return pad(tensor, (*behind, length - tensor.shape[dimension], 0))
