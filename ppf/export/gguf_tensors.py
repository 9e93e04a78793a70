"""The tensors of a pruned model under their GGUF names."""

from collections.abc import Iterator
from typing import Any, cast

import gguf
import torch
from gguf import GGMLQuantizationType
from torch import Tensor, nn
from transformers import PreTrainedModel

from ppf.export.gguf_architectures import Architecture, rope_of
from ppf.export.pruned import Pruned
from ppf.pruning.rounding import BLOCK, rounded
from ppf.records.values import NumberFormat

_NAMES = {"model.embed_tokens.weight": "token_embd.weight", "lm_head.weight": "output.weight"}
_FUSED = tuple(f"self_attn.{part}_proj.weight" for part in "qkv")


def tensors(model: Pruned, reader: Architecture) -> Iterator[tuple[str, Tensor]]:
    """All tensors by their GGUF names; tied ones once."""
    config: Any = model.lm.model.config
    names = gguf.get_tensor_name_map(reader.number, config.num_hidden_layers)
    named = model.tensors(reader.shapes(model))
    for own, tensor in _fused(named) if reader.fused else named:
        name = own if own.startswith("blk.") else names.get_name(own, (".weight", ".bias"))
        assert name, own
        if reader.interleaved and (".q_proj." in own or ".k_proj." in own):
            tensor = _interleaved(tensor, model.head)
        yield name, tensor.float() + reader.norm_shift if "norm" in name else tensor
    if rope_of(config)["rope_type"] != "default":
        yield "rope_freqs.weight", _rotary_factors(model.lm.model)


def tensor_type(name: str, tensor: Tensor, matrices: GGMLQuantizationType, *, tied: bool) -> Any:
    """The number format of a tensor.

    Vectors are float32. Matrices whose rows do not divide into blocks are f16. The output matrix
    has at least 8 bits: llama.cpp's own tool also gives it more bits than other matrices.

    Args:
        name: in the file.
        matrices: the format of all other matrices.
        tied: whether the output matrix is that of the embedding.
    """
    if tensor.ndim == 1:
        return GGMLQuantizationType.F32
    if matrices == GGMLQuantizationType.F16 or tensor.shape[-1] % BLOCK:
        return GGMLQuantizationType.F16
    output = "token_embd.weight" if tied else "output.weight"
    return GGMLQuantizationType.Q8_0 if name == output else matrices


def formats(
    model: PreTrainedModel, matrices: NumberFormat
) -> Iterator[tuple[nn.Parameter, GGMLQuantizationType]]:
    """The parameters of a model, and their number formats in a file."""
    wanted, tied = GGMLQuantizationType[matrices.upper()], model.config.tie_word_embeddings
    for name, parameter in model.named_parameters():
        yield parameter, tensor_type(_NAMES.get(name, name), parameter, wanted, tied=tied)


def file_bytes(model: PreTrainedModel, matrices: NumberFormat) -> int:
    """Size of a model's weights in a file."""
    found = 0
    for parameter, kind in formats(model, matrices):
        block, size = gguf.GGML_QUANT_SIZES[kind]
        found += parameter.numel() * size // block
    return found


@torch.no_grad()
def round_weights(model: PreTrainedModel, matrices: NumberFormat) -> None:
    """Rounds a model's weights in place to the numbers that a file would hold."""
    for parameter, kind in formats(model, matrices):
        if kind != GGMLQuantizationType.F32:
            parameter.copy_(rounded(parameter, cast(NumberFormat, kind.name.lower())))


def site_of(name: str) -> str:
    """The site that a tensor belongs to, as in "3.mlp"; empty: it belongs to no site."""
    if not name.startswith("blk."):
        return ""
    _, layer, part, *_ = name.split(".")
    return f"{layer}.{'mlp' if part.startswith('ffn') else 'attention'}"


def _fused(named: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Query, key and value projections of each layer as one matrix."""
    parts: list[Tensor] = []
    for name, tensor in named:
        if not name.endswith(_FUSED):
            yield name, tensor
            continue
        parts.append(tensor)
        if len(parts) == len(_FUSED):
            yield f"blk.{name.split('.')[2]}.attn_qkv.weight", torch.cat(parts)
            parts = []


def _interleaved(rows: Tensor, head: int) -> Tensor:
    """Reorders rows for rotary embeddings: from transformers' half-heads to GGUF's pairs."""
    return rows.unflatten(0, (-1, 2, head // 2)).transpose(1, 2).flatten(0, 2)


def _rotary_factors(model: Any) -> Tensor:
    """Divisors of the default rotary frequencies, [head / 2]."""
    rotary = model.model.rotary_emb
    plain, _ = rotary.compute_default_rope_parameters(model.config, device=rotary.inv_freq.device)
    return plain / rotary.inv_freq
