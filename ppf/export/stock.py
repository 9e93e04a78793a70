"""Smaller forms of a pruned model: without empty layers, and in the family's own class."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from ppf.export.layers import without_empty_layers
from ppf.export.pruned import Pruned, Shape, fill, whole
from ppf.llm import LanguageModel

_BIASES = {"attention": "attention_bias", "mlp": "mlp_bias"}
"""Kind of block → key of a config that gives all of its projections biases."""


def smallest(model: Pruned, policy: Mapping[str, Any]) -> Pruned:
    """The model without empty layers, in its stock class if possible.

    The number formats of a policy name layers of the dense model, so with them no layer goes.
    """
    return model if policy.get("types") else stock(without_empty_layers(model))


def stock(model: Pruned) -> Pruned:
    """The same model in the family's own class, with narrower layers.

    It is the given one if the class cannot hold it: if layers differ, if the compensation has added
    biases that the class lacks, or if the class derives the size of heads from their number.
    """
    lm, adapter = model.lm, model.lm.adapter
    shapes: dict[int, dict[str, Shape]] = {}
    for coupling, (atoms, queries) in zip(model.couplings, model.shapes, strict=True):
        shapes.setdefault(coupling.layer, {})[coupling.kind] = atoms, queries if atoms else 0
    forms = {tuple(sorted(kept.items())) for kept in shapes.values()}
    if len(forms) != 1 or (model.plain and type(lm.model) is type(model.dense)):
        return model
    (form,) = forms
    config: Any = copy.deepcopy(lm.model.config)
    for kind, (atoms, queries) in form:
        for name, width in adapter.widths(kind, atoms, queries).items():
            setattr(config, name, width)
    for coupling in model.couplings:
        key = _BIASES.get(coupling.kind, "")
        if coupling.consumer.bias is not None and hasattr(config, key):
            setattr(config, key, True)
    config.head_dim = model.head
    if "experts" in dict(form):
        config.num_experts_per_tok = min(config.num_experts_per_tok, config.num_local_experts)
    try:
        config.validate()
        with torch.device("meta"):
            made = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
            adapter.with_projections(made)
    except Exception:  # the config refuses these widths
        return model
    tensors, expected = lm.model.state_dict(), made.state_dict()
    for name in expected.keys() - tensors.keys():
        if name.endswith(".bias"):
            tensors[name] = torch.zeros(expected[name].shape, dtype=lm.dtype, device=lm.device)
    if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in expected.items()}:
        return model
    fill(made, lm, tensors)
    return whole(LanguageModel(made, lm.tokenizer, adapter))
