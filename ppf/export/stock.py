"""Pruned models whose layers are equal, as models of the family's own class."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from ppf.export.pruned import Pruned, Shape
from ppf.llm import LanguageModel


def stock(model: Pruned) -> Pruned:
    """The same model in the family's own class, with fewer layers and narrower ones.

    It is the given one if the class cannot hold it: if layers differ, if a block is missing alone,
    if the compensation has added biases that the class lacks, or if the class derives the size of
    heads from their number.
    """
    lm, adapter = model.lm, model.lm.adapter
    shapes: dict[int, dict[str, Shape]] = {}
    for coupling, (atoms, queries) in zip(model.couplings, model.shapes, strict=True):
        shapes.setdefault(coupling.layer, {})[coupling.kind] = atoms, queries if atoms else 0
    stay = [layer for layer, kept in shapes.items() if any(atoms for atoms, _ in kept.values())]
    forms = {tuple(sorted(shapes[layer].items())) for layer in stay}
    adds = any(c.consumer.bias is not None for c in model.couplings if c.layer not in stay)
    if len(forms) != 1 or adds or model.shapes == model.whole:
        return model
    (form,) = forms
    config: Any = copy.deepcopy(lm.model.config)
    for kind, (atoms, queries) in form:
        for name, width in adapter.widths(kind, atoms, queries).items():
            setattr(config, name, width)
    config.head_dim, config.num_hidden_layers = model.head, len(stay)
    if "experts" in dict(form):
        config.num_experts_per_tok = min(config.num_experts_per_tok, config.num_local_experts)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[layer] for layer in stay]
    try:
        config.validate()
        with torch.device("meta"):
            made = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
            adapter.with_projections(made)
    except Exception:  # the config refuses these widths
        return model
    place = _place(lm)
    names = {f"{place}{old}.": f"{place}{new}." for new, old in enumerate(stay)}
    tensors = {}
    for name, tensor in lm.model.state_dict().items():
        if name.startswith(place):
            old = next((start for start in names if name.startswith(start)), None)
            name = "" if old is None else names[old] + name.removeprefix(old)
        if name:
            tensors[name] = tensor
    expected = {name: tensor.shape for name, tensor in made.state_dict().items()}
    if {name: tensor.shape for name, tensor in tensors.items()} != expected:
        return model
    made.requires_grad_(False).load_state_dict(tensors, assign=True)  # some are inference tensors
    made.generation_config = lm.model.generation_config
    made.tie_weights()
    for name, buffer in lm.model.named_buffers():  # those that state dicts leave out
        owner, _, own = name.rpartition(".")
        made.get_submodule(owner).register_buffer(own, buffer, persistent=False)
    smaller = LanguageModel(made.eval(), lm.tokenizer, adapter)
    return whole(smaller)


def smallest(model: Pruned, policy: Mapping[str, Any]) -> Pruned:
    """The model in its stock class, if possible; number formats name layers of the dense model."""
    return model if policy.get("types") else stock(model)


def whole(lm: LanguageModel) -> Pruned:
    """A model that is not pruned, in the form that exports read."""
    blocks: list[nn.Module] = [getattr(c.parent, c.attribute) for c in lm.couplings]
    return Pruned(lm, lm.couplings, blocks, [(c.atoms, c.queries) for c in lm.couplings])


def _place(lm: LanguageModel) -> str:
    """What the names of the layers' parameters begin with, as in "model.layers."."""
    layers = lm.adapter.layers(lm.model)
    return next(f"{name}." for name, module in lm.model.named_modules() if module is layers)
