"""The tensors of a pruned model under their GGUF names."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import gguf
import torch
from gguf import GGMLQuantizationType
from torch import Tensor, nn
from transformers import PreTrainedModel

from ppf.export.gguf_architectures import Architecture, rope_of
from ppf.export.k_quants import FALLBACKS, MIXTURES, quantized
from ppf.export.pruned import Pruned
from ppf.pruning.rounding import BLOCK, BLOCK_BYTES, rounded
from ppf.records.values import FileFormat

_NAMES = {"model.embed_tokens.weight": "token_embd.weight", "lm_head.weight": "output.weight"}
_FUSED = tuple(f"self_attn.{part}_proj.weight" for part in "qkv")
_MORE = ("attn_v.weight", "attn_qkv.weight", "ffn_down.weight", "v_proj.weight", "down_proj.weight")


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


def names_in_file(
    found: Mapping[str, Tensor], model: Pruned, reader: Architecture
) -> dict[str, Tensor]:
    """What was found for matrices, by their GGUF names; fused ones have the same inputs."""
    names = gguf.get_tensor_name_map(reader.number, model.lm.model.config.num_hidden_layers)
    parts = (".q_proj.", ".qkv_proj.") if reader.fused else ("", "")
    named = ((names.get_name(own.replace(*parts), (".weight",)), x) for own, x in found.items())
    return {name: tensor for name, tensor in named if name}


def tensor_type(name: str, tensor: Tensor, matrices: FileFormat, config: Any) -> Any:
    """The number format of a tensor.

    Vectors are float32. Matrices whose rows do not divide into blocks are f16. As with llama.cpp's
    own tool, the output matrix has more bits than others: q8_0, or q6_k in a mixture.

    Args:
        name: in the file or, but for embedding and output matrix, in transformers.
        matrices: the format of all other matrices.
        config: of the model.
    """
    if tensor.ndim == 1:
        return GGMLQuantizationType.F32
    if matrices == "f16":
        return GGMLQuantizationType.F16
    most, more = MIXTURES.get(matrices, (matrices, matrices))
    if name == ("token_embd.weight" if config.tie_word_embeddings else "output.weight"):
        most = "q6_k" if matrices in MIXTURES else "q8_0"
    elif name.endswith(_MORE) and _has_more(name, config.num_hidden_layers):
        most = more
    columns = tensor.shape[-1]
    if columns % gguf.QK_K:
        most = FALLBACKS.get(most, most)
    return GGMLQuantizationType["F16" if columns % BLOCK else most.upper()]


def _has_more(name: str, layers: int) -> bool:
    """Whether a mixture has more bits in a layer: first and last eighth, and every third one."""
    layer, eighth = int(name.split(".")[-4 if name.startswith("model.") else 1]), layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def formats(
    model: PreTrainedModel, matrices: FileFormat, types: Mapping[str, FileFormat]
) -> Iterator[tuple[nn.Parameter, GGMLQuantizationType]]:
    """The parameters of a model, and their number formats in a file.

    Args:
        matrices: format of the matrices that belong to no site of `types`.
        types: format of the matrices of each site, of a policy that rounds weights.
    """
    config: Any = model.config
    fused = config.model_type == "qwen3" and config.tie_word_embeddings
    for name, parameter in model.named_parameters():
        own = _NAMES.get(name, name)
        if fused and hasattr(config, "pruned_blocks") and name.endswith(_FUSED):
            own = name.replace("q_proj", "v_proj").replace("k_proj", "v_proj")
        yield parameter, tensor_type(own, parameter, types.get(site_of(own), matrices), config)


def file_bytes(
    model: PreTrainedModel, matrices: FileFormat, types: Mapping[str, FileFormat] | None = None
) -> int:
    """Size of a model's weights in a file; arguments as for `formats`."""
    found = 0
    for parameter, kind in formats(model, matrices, types or {}):
        block, size = gguf.GGML_QUANT_SIZES[kind]
        found += parameter.numel() * size // block
    return found


@torch.no_grad()
def round_weights(
    model: PreTrainedModel, matrices: FileFormat, types: Mapping[str, FileFormat] | None = None
) -> None:
    """Rounds a model's weights in place to the numbers that a file would hold.

    An importance matrix is left out. Arguments as for `formats`.
    """
    for parameter, kind in formats(model, matrices, types or {}):
        if (name := kind.name.lower()) in BLOCK_BYTES:
            parameter.copy_(rounded(parameter, name))
        elif kind != GGMLQuantizationType.F32:
            stored = quantized(parameter, kind)
            parameter.copy_(torch.from_numpy(gguf.quants.dequantize(stored, kind)))


def site_of(name: str) -> str:
    """The site that a tensor belongs to, as in "3.mlp"; empty: it belongs to no site.

    Args:
        name: in the file or in transformers.
    """
    found = re.search(r"(?:blk|layers)\.(\d+)\.(ffn|mlp)?", name)
    return f"{found[1]}.{'mlp' if found[2] else 'attention'}" if found else ""


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
