"""The tensors of a pruned Llama-form model under GGUF's names.

llama.cpp's `deci` gets two kinds of layer wrong. With no attention in the first layer it takes
heads to be of size zero, and in a layer without an FFN it drops the attention too. There, and where
a block with nothing left has a bias to add, a few atoms of zeros are written.
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
    """Per coupling, the atoms that are left, or those of zeros that stand for none."""
    return [
        atoms or _stand_in(coupling)
        for coupling, atoms in zip(pruner.lm.couplings, pruner.atoms, strict=True)
    ]


def _stand_in(coupling: Coupling) -> int:
    if coupling.kind == "mlp":
        return _QUANTISED
    return int(coupling.layer == 0 or coupling.consumer.bias is not None)


def tensors(pruner: LivePruner) -> Iterator[tuple[str, Tensor]]:
    """All that is saved; what is tied once."""
    config: Any = pruner.lm.model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.DECI, config.num_hidden_layers)
    for own, tensor in _by_own_names(pruner):
        name = names.get_name(own, try_suffixes=(".weight", ".bias"))
        assert name, own
        rotated = ".q_proj." in own or ".k_proj." in own
        yield name, _neighbours(tensor, config.head_dim) if rotated else tensor
    if config.rope_parameters["rope_type"] != "default":
        yield "rope_freqs.weight", _rotary_factors(pruner.lm.model)


def tensor_type(tensor: Tensor, matrices: GGMLQuantizationType) -> GGMLQuantizationType:
    """float32 for vectors; f16 for matrices whose rows q8_0 cannot divide, as llama.cpp does."""
    if tensor.ndim == 1:
        return GGMLQuantizationType.F32
    divides = tensor.shape[-1] % _QUANTISED == 0
    return matrices if divides else GGMLQuantizationType.F16


def _by_own_names(pruner: LivePruner) -> Iterator[tuple[str, Tensor]]:
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
    """A block's parameters, filled with zeros to `atoms`."""
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


def _neighbours(rows: Tensor, head: int) -> Tensor:
    """Puts what is rotated together side by side; for transformers it is the halves of a head."""
    return rows.unflatten(0, (-1, 2, head // 2)).transpose(1, 2).flatten(0, 2)


def _rotary_factors(model: Any) -> Tensor:
    """What the plain rotary frequencies are divided by, [head / 2]."""
    rotary = model.model.rotary_emb
    plain, _ = rotary.compute_default_rope_parameters(model.config, device=rotary.inv_freq.device)
    return plain / rotary.inv_freq
