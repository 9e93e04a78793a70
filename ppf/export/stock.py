"""Smaller forms of a pruned model: without empty layers, and in the family's own class."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ppf.evaluation.size import parameters
from ppf.export.huggingface import pruned_config
from ppf.export.loading import described, pruned_class
from ppf.export.pruned import Pruned, Shape, whole
from ppf.llm import LanguageModel


def smallest(model: Pruned, policy: Mapping[str, Any]) -> Pruned:
    """The model without empty layers, in its stock class if possible.

    The number formats of a policy name layers of the dense model, so with them no layer goes.
    """
    return model if policy.get("types") else stock(without_empty_layers(model))


def counted(policy: Mapping[str, Any], model: Pruned, written: Pruned) -> dict[str, Any]:
    """The policy of a live-pruned model with the share of parameters that the written one lacks."""
    share = 1 - parameters(written.lm.model) / parameters(model.dense)
    return {**policy, "ratio": policy["ratio"] | {"of_all_parameters": max(share, 0.0)}}


def without_empty_layers(model: Pruned) -> Pruned:
    """The same model without its empty layers; the others are renumbered.

    The biases of an empty layer add a constant to the residual stream. The bias of the last block
    in front of the layer takes it: nothing reads the stream between them. If there is no such
    block, or a norm changes what it adds, the layer stays. It also stays if the family's layers
    normalise the stream itself.
    """
    lm, adapter = model.lm, model.lm.adapter
    gone, biases = _folded(model)
    stay = [layer for layer in range(len(adapter.layers(lm.model))) if layer not in gone]
    if not gone or not stay:
        return model
    numbers = {old: new for new, old in enumerate(stay)}
    pairs = zip(model.couplings, model.shapes, strict=True)
    kept = [(c, shape) for c, shape in pairs if c.layer in numbers]
    couplings = [replace(coupling, layer=numbers[coupling.layer]) for coupling, _ in kept]
    config: Any = copy.deepcopy(lm.model.config)
    adapter.keep_layers(config, stay)
    with torch.device("meta"):
        dense = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        smaller = LanguageModel(dense, lm.tokenizer, adapter)
        widths = pruned_config(Pruned(smaller, couplings, [], [shape for _, shape in kept]), biases)
        made = pruned_class(dense)(widths)
    _fill(made, lm, _renumbered(lm, numbers, biases))
    return described(made, lm.tokenizer)


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
    for key in {f"{c.kind}_bias" for c in model.couplings if c.consumer.bias is not None}:
        if hasattr(config, key):  # of all projections in blocks of this kind
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
    for name in (x for x in expected.keys() - tensors.keys() if x.endswith(".bias")):
        tensors[name] = torch.zeros(expected[name].shape, dtype=lm.dtype, device=lm.device)
    if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in expected.items()}:
        return model
    _fill(made, lm, tensors)
    return whole(LanguageModel(made, lm.tokenizer, adapter))


def _folded(model: Pruned) -> tuple[set[int], dict[nn.Linear, Tensor]]:
    """The layers that go, and the biases of the consumers that take theirs."""
    adapter = model.lm.adapter
    added = adapter.adds_to_stream(model.lm.model.config)
    gone, biases = set[int](), dict[nn.Linear, Tensor]()
    last: Any = None  # the consumer of the last block
    pairs = zip(model.couplings, model.shapes, strict=True)
    for layer, group in groupby(pairs, lambda pair: pair[0].layer):
        parts = list(group)
        empty = len(parts) == 2 and not any(atoms for _, (atoms, _) in parts)
        constants = [b for c, _ in parts if (b := c.consumer.bias) is not None and b.any()]
        idle = added or all(adapter.norm_behind(coupling) for coupling, _ in parts)
        if not empty or not idle or (constants and not (added and last)):
            last = next((c.consumer for c, (atoms, _) in reversed(parts) if atoms), None)
            continue
        gone.add(layer)
        for bias in constants:
            before = biases.get(last, last.bias)
            biases[last] = bias if before is None else before + bias.to(before)
    return gone, biases


def _renumbered(
    lm: LanguageModel, numbers: Mapping[int, int], biases: Mapping[nn.Linear, Tensor]
) -> dict[str, Tensor]:
    """The tensors of the layers that stay, and all that belong to no layer, by their new names."""
    names = {module: name for name, module in lm.model.named_modules()}
    given = lm.model.state_dict() | {f"{names[linear]}.bias": b for linear, b in biases.items()}
    place, tensors = f"{names[lm.adapter.layers(lm.model)]}.", {}
    for name, tensor in given.items():
        number, _, own = name.removeprefix(place).partition(".")
        if not name.startswith(place):
            tensors[name] = tensor
        elif int(number) in numbers:
            tensors[f"{place}{numbers[int(number)]}.{own}"] = tensor
    return tensors


def _fill(made: PreTrainedModel, lm: LanguageModel, tensors: Mapping[str, Tensor]) -> None:
    """Gives a model without weights these tensors, and all else that it takes from `lm`."""
    made.requires_grad_(False).load_state_dict(tensors, assign=True)  # some are inference tensors
    made.generation_config = lm.model.generation_config
    made.tie_weights()
    for name, buffer in lm.model.named_buffers():  # those that state dicts leave out
        owner, _, own = name.rpartition(".")
        made.get_submodule(owner).register_buffer(own, buffer, persistent=False)
    made.eval()
