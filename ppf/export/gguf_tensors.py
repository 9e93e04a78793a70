"""The tensors of a pruned Llama-like model under their GGUF names.

llama.cpp's `deci` computes two kinds of layer wrongly. If the first layer has no attention, it
assumes heads of size zero. In a layer without an FFN it also drops the attention. In these cases,
and for an empty block with a bias, a few atoms of zeros are written.
"""

from collections.abc import Iterator
from typing import Any

import gguf
import torch
from gguf import GGMLQuantizationType
from torch import Tensor, nn

from ppf.llm import Coupling
from ppf.pruning import LivePruner

_QUANTISED = 32  # numbers that share a scale in q8_0
_NORMS = {"attention": "input_layernorm", "mlp": "post_attention_layernorm"}


def written_atoms(pruner: LivePruner) -> list[int]:
    """Atoms to write per coupling: those that are kept, or some of zeros for an empty block."""
    return [
        atoms or _stand_in(coupling)
        for coupling, atoms in zip(pruner.lm.couplings, pruner.atoms, strict=True)
    ]


def _stand_in(coupling: Coupling) -> int:
    """Atoms of zeros that are written for an empty block."""
    if coupling.kind == "mlp":
        return _QUANTISED
    return int(coupling.layer == 0 or coupling.consumer.bias is not None)


def tensors(pruner: LivePruner) -> Iterator[tuple[str, Tensor]]:
    """All tensors by their GGUF names; tied ones once."""
    config: Any = pruner.lm.model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DECI, config.num_hidden_layers)
    for own, tensor in _by_own_names(pruner):
        name = names.get_name(own, try_suffixes=(".weight", ".bias"))
        assert name, own
        rotated = ".q_proj." in own or ".k_proj." in own
        yield name, _interleaved(tensor, config.head_dim) if rotated else tensor
    if config.rope_parameters["rope_type"] != "default":
        yield "rope_freqs.weight", _rotary_factors(pruner.lm.model)


def tensor_type(tensor: Tensor, matrices: GGMLQuantizationType) -> GGMLQuantizationType:
    """The number format of a tensor, chosen as llama.cpp does.

    Vectors are float32. Matrices whose rows do not divide into q8_0's blocks are f16.

    Args:
        matrices: the format of all other matrices.
    """
    if tensor.ndim == 1:
        return GGMLQuantizationType.F32
    divides = tensor.shape[-1] % _QUANTISED == 0
    return matrices if divides else GGMLQuantizationType.F16


def _by_own_names(pruner: LivePruner) -> Iterator[tuple[str, Tensor]]:
    """All tensors by the names that they have in transformers."""
    written = list(zip(pruner.lm.couplings, pruner.blocks, written_atoms(pruner), strict=True))
    places = tuple(f"model.layers.{c.layer}.{c.attribute}." for c, _, _ in written)
    unused = {f"model.layers.{c.layer}.{_NORMS[c.kind]}.weight" for c, _, n in written if not n}
    for name, tensor in pruner.lm.model.named_parameters():
        if not name.startswith(places) and name not in unused:
            yield name, tensor
    for place, (coupling, block, atoms) in zip(places, written, strict=True):
        if atoms:
            yield from ((place + name, part) for name, part in _block(coupling, block, atoms))


def _block(coupling: Coupling, block: nn.Module, atoms: int) -> Iterator[tuple[str, Tensor]]:
    """A block's parameters, padded with zeros to `atoms`."""
    names = {module: name for name, module in block.named_modules()}
    for producer in coupling.producers:
        for name, tensor in producer.linear.named_parameters():
            missing = tensor.new_zeros(atoms * producer.rows - len(tensor), *tensor.shape[1:])
            yield f"{names[producer.linear]}.{name}", torch.cat([tensor, missing])
    consumer = coupling.consumer
    weight = consumer.weight
    missing = weight.new_zeros(len(weight), atoms * coupling.columns - weight.shape[1])
    yield f"{names[consumer]}.weight", torch.cat([weight, missing], 1)
    if consumer.bias is not None:
        yield f"{names[consumer]}.bias", consumer.bias


def _interleaved(rows: Tensor, head: int) -> Tensor:
    """Reorders rows for rotary embeddings: from transformers' half-heads to GGUF's pairs."""
    return rows.unflatten(0, (-1, 2, head // 2)).transpose(1, 2).flatten(0, 2)


def _rotary_factors(model: Any) -> Tensor:
    """Divisors of the default rotary frequencies, [head / 2]."""
    rotary = model.model.rotary_emb
    plain, _ = rotary.compute_default_rope_parameters(model.config, device=rotary.inv_freq.device)
    return plain / rotary.inv_freq
