"""Pruned models without the layers that have lost both attention and FFN."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from ppf.export.huggingface import pruned_config
from ppf.export.loading import described, pruned_class
from ppf.export.pruned import Pruned, fill
from ppf.llm import Coupling, LanguageModel


def without_empty_layers(model: Pruned) -> Pruned:
    """The same model without its empty layers; the others are renumbered.

    The biases of an empty layer add a constant to the residual stream. The bias of the last block
    in front of the layer takes it: nothing reads the stream between them. If there is no such
    block, or a norm changes what it adds, the layer stays. It also stays if the family's layers
    normalise the stream itself.
    """
    lm, adapter = model.lm, model.lm.adapter
    stay, biases = _folded(model)
    if len(stay) in (0, len(adapter.layers(lm.model))):
        return model
    numbers = {old: new for new, old in enumerate(stay)}
    couplings, blocks, shapes = [], [], []
    for coupling, block, shape in zip(model.couplings, model.blocks, model.shapes, strict=True):
        if coupling.layer in numbers:
            couplings.append(replace(coupling, layer=numbers[coupling.layer]))
            blocks.append(block)
            shapes.append(shape)
    config: Any = copy.deepcopy(lm.model.config)
    adapter.keep_layers(config, stay)
    with torch.device("meta"):
        dense = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        smaller = LanguageModel(dense, lm.tokenizer, adapter)
        config = pruned_config(Pruned(smaller, couplings, blocks, shapes))
        for coupling in couplings:
            listed = config.pruned_blocks[coupling.kind]["biases"]
            if coupling.consumer in biases and coupling.layer not in listed:
                listed.append(coupling.layer)
        made = pruned_class(dense)(config)
    fill(made, lm, _renumbered(lm, numbers, biases))
    return described(made, lm.tokenizer)


def _folded(model: Pruned) -> tuple[list[int], dict[nn.Linear, Tensor]]:
    """The layers that stay, and the biases of the consumers that take those of other layers."""
    adapter = model.lm.adapter
    added = adapter.adds_to_stream(model.lm.model.config)
    layers: list[list[tuple[Coupling, int]]] = [[] for _ in adapter.layers(model.lm.model)]
    for coupling, (atoms, _) in zip(model.couplings, model.shapes, strict=True):
        layers[coupling.layer].append((coupling, atoms))
    stay, biases, last = list[int](), dict[nn.Linear, Tensor](), None
    for index, parts in enumerate(layers):
        empty = len(parts) == 2 and not any(atoms for _, atoms in parts)
        normed = all(adapter.norm_behind(coupling) for coupling, _ in parts)
        known = (coupling.consumer.bias for coupling, _ in parts)
        constants = [bias for bias in known if bias is not None and bias.any()]
        if not empty or not (added or normed) or (constants and not (added and last)):
            stay.append(index)
            last = next((c.consumer for c, atoms in reversed(parts) if atoms), None)
            continue
        for bias in constants if last else ():
            before = biases.get(last, last.bias)
            biases[last] = bias if before is None else before + bias.to(before)
    return stay, biases


def _renumbered(
    lm: LanguageModel, numbers: Mapping[int, int], biases: Mapping[nn.Linear, Tensor]
) -> dict[str, Tensor]:
    """The tensors of the layers that stay, and all that belong to no layer, by their new names."""
    layers = lm.adapter.layers(lm.model)
    names = {module: name for name, module in lm.model.named_modules()}
    given = lm.model.state_dict() | {f"{names[linear]}.bias": b for linear, b in biases.items()}
    tensors = {}
    for name, tensor in given.items():
        number, _, own = name.removeprefix(f"{names[layers]}.").partition(".")
        if not name.startswith(f"{names[layers]}."):
            tensors[name] = tensor
        elif int(number) in numbers:
            tensors[f"{names[layers]}.{numbers[int(number)]}.{own}"] = tensor
    return tensors
