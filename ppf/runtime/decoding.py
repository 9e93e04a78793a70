"""Fewer and faster operations for the decoding of single tokens on CPUs."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.backends import mkldnn
from transformers import Cache, LlamaModel, MistralModel, PreTrainedModel, Qwen2Model, Qwen3Model
from transformers.cache_utils import DynamicLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from ppf.pruning.empty_block import EmptyBlock

_DECODERS = LlamaModel, MistralModel, Qwen2Model, Qwen3Model
Rotation = tuple[Float[Tensor, "*rows 1 size"], Float[Tensor, "*rows 1 size"]]
"""Cosines and sines of rotary embeddings; the first half of the sines is negated."""


def decode_fast(model: PreTrainedModel) -> None:
    """Makes a model on the CPU decode faster; on other devices nothing changes.

    In 16 bits, linear layers multiply a single token as a vector, without oneDNN: PyTorch's own
    matrix-vector product is 2 to 3 times as fast. Decoders of Llama's form run
    `_decode` if every sequence has one new token. It computes what transformers computes, with a
    third of the operations. Where a decoder layer has forward hooks, transformers' own code runs,
    which calls them.
    """
    if model.device.type != "cpu":
        return
    for module in model.modules():
        if type(module) is nn.Linear and model.dtype.itemsize == 2:
            module.forward = MethodType(_product, module)  # type: ignore[method-assign]
        elif type(module) in _DECODERS and not _windowed(module.config):
            module.forward = MethodType(_forward, module)


def _windowed(config: Any) -> bool:
    """Whether a layer attends only to a window of the tokens."""
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        return getattr(config, "sliding_window", None) is not None
    return "sliding_attention" in kinds


def _product(linear: nn.Linear, x: Float[Tensor, "*tokens columns"]) -> Tensor:
    """The forward method of a linear layer."""
    if x.numel() != x.shape[-1] or x.requires_grad:
        return F.linear(x, linear.weight, linear.bias)
    with _without_onednn():
        product = torch.mv(linear.weight, x.view(-1)).view(*x.shape[:-1], -1)
    return product if linear.bias is None else product + linear.bias


@contextmanager
def _without_onednn() -> Iterator[None]:
    before = mkldnn.enabled
    mkldnn.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        mkldnn.enabled = before


def _forward(decoder: Any, input_ids: Any = None, **named: Any) -> Any:
    """The forward method of a decoder."""
    name, cache = next(((n, x) for n, x in named.items() if isinstance(x, Cache)), ("", None))
    mask, wanted = named.get("attention_mask"), ("output_attentions", "output_hidden_states")
    usual = (
        input_ids is not None
        and input_ids.shape[1] == 1
        and cache is not None
        and cache.get_seq_length()
        and isinstance(cache.layers[0], DynamicLayer)
        and named.get("position_ids") is not None
        and (mask is None or mask.dim() == 2)
        and not any(layer._forward_hooks for layer in decoder.layers)
    )
    if not usual or any(named.get(key) for key in wanted):
        return type(decoder).forward(decoder, input_ids, **named)
    seen = None if mask is None or mask.all() else mask[:, None, None].bool()
    with _without_onednn() if len(input_ids) == 1 else nullcontext():
        hidden = _decode(decoder, input_ids[:, 0], named["position_ids"], seen, cache)
    return BaseModelOutputWithPast(hidden[:, None], **{name: cache})  # type: ignore[arg-type]


def _decode(
    decoder: Any,
    ids: Int[Tensor, " rows"],
    positions: Int[Tensor, "rows 1"],
    mask: Bool[Tensor, "rows 1 1 tokens"] | None,
    cache: Any,
) -> Float[Tensor, "rows width"]:
    """The normalised residual stream after the last layer.

    The functions below get one row as a vector, because each change of shape takes time.
    """
    x = decoder.embed_tokens(ids)
    cos, sin = decoder.rotary_emb(x, positions)
    first, second = sin.chunk(2, -1)
    rotation = cos, torch.cat((-first, second), -1)
    if len(ids) == 1:
        x, rotation = x[0], (cos[0], rotation[1][0])
    for layer, stored in zip(decoder.layers, cache.layers, strict=True):
        modules = layer._modules
        attention, mlp = modules["self_attn"], modules["mlp"]
        normed = _normed(modules["input_layernorm"], x)
        if isinstance(attention, EmptyBlock):
            x = x + attention(normed.view(len(ids), 1, -1), cache=cache)[0].view(x.shape)
        else:
            x = x + _attend(attention, normed, rotation, mask, stored)
        normed = _normed(modules["post_attention_layernorm"], x)
        x = x + (mlp(normed) if isinstance(mlp, EmptyBlock) else _mix(mlp, normed))
    return _normed(decoder.norm, x).view(len(ids), -1)


def _attend(
    attention: Any,
    x: Float[Tensor, "*rows width"],
    rotation: Rotation,
    mask: Bool[Tensor, "rows 1 1 tokens"] | None,
    stored: Any,
) -> Float[Tensor, "*rows width"]:
    """The output of an attention block.

    PyTorch's kernel gets the heads of a KV group as queries of one head. It then reads the group's
    keys and values once.

    Args:
        stored: the KV cache of this layer.
    """
    modules, size, rows = attention._modules, attention.head_dim, len(x) if x.dim() > 1 else 1
    heads = *x.shape[:-1], -1, size
    query = _project(modules["q_proj"], x).view(heads)
    key = _project(modules["k_proj"], x).view(heads)
    if "q_norm" in modules:
        query, key = modules["q_norm"](query), modules["k_norm"](key)
    groups = key.shape[-2]
    cos, sin = rotation
    both = torch.cat((query, key), -2)
    both = both * cos + both.roll(size // 2, -1) * sin
    query, key = torch.split_with_sizes(both, (query.shape[-2], groups), -2)
    value = _project(modules["v_proj"], x)
    new = rows, groups, 1, size
    keys, values = stored.update(key.view(new), value.view(new))
    query = query.view(rows, groups, -1, size)
    mixed = F.scaled_dot_product_attention(query, keys, values, mask, scale=attention.scaling)
    return _project(modules["o_proj"], mixed.view(*x.shape[:-1], -1))


def _mix(mlp: Any, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
    """The output of an FFN."""
    modules = mlp._modules
    gate, up = _project(modules["gate_proj"], x), _project(modules["up_proj"], x)
    return _project(modules["down_proj"], modules["act_fn"].forward(gate) * up)


def _project(linear: nn.Linear, x: Float[Tensor, "*rows columns"]) -> Float[Tensor, "*rows _"]:
    """The output of a linear layer, and of its hooks if it has any."""
    if linear._forward_hooks:
        return linear(x)
    # A module's dictionary is read ten times as fast as its attributes.
    weight, bias = linear._parameters["weight"], linear._parameters["bias"]
    assert weight is not None
    if x.dim() > 1 or x.dtype.itemsize > 2:
        return F.linear(x, weight, bias)
    product = torch.mv(weight, x)
    return product if bias is None else product.add_(bias)


def _normed(norm: Any, x: Float[Tensor, "*rows width"]) -> Float[Tensor, "*rows width"]:
    """The output of an RMS norm, rounded where transformers rounds."""
    weight, epsilon = norm._parameters["weight"], norm.variance_epsilon
    if x.dim() > 1:
        return F.rms_norm(x, x.shape[1:], None, epsilon) * weight
    wide = x.float()
    return x * (torch.dot(wide, wide).item() / x.shape[0] + epsilon) ** -0.5 * weight
