"""A pruned model as a Hugging Face folder that plain transformers loads.

The widths are told in transformers' own terms: `per_layer_config` overrides the family's attributes
layer by layer (`num_key_value_heads`, `num_attention_heads`, `intermediate_size`); the global ones
stay the dense model's. transformers sizes KV caches by it but builds no layers from it (5.24), so
the folder carries `modeling_pruned.py`, one file for all families: the dense model's class, whose
projections it narrows. Beyond the widths it needs `pruned_blocks`: which projections an atom has
rows or columns in, and how many.
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ppf.export.card import model_card
from ppf.llm import Adapter, Coupling
from ppf.pruning import LivePruner

_MODELING = Path(__file__).with_name("modeling_pruned.py")
_EMPTY_BLOCK = Path(__file__).parents[1] / "pruning" / "empty_block.py"


def export_folder(pruner: LivePruner, folder: Path, policy: Mapping[str, Any]) -> Path:
    """Writes the model under its present policy, with config, code, tokenizer and model card.

    `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` loads it, without this
    package. Files of the same names in the folder are overwritten.

    Args:
        policy: the contents of policy.json.

    Returns:
        The folder.
    """
    model = pruner.lm.model
    folder.mkdir(parents=True, exist_ok=True)
    save_torch_state_dict(_weights(model), folder, metadata={"format": "pt"})
    pruned_config(pruner).save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    pruner.lm.tokenizer.save_pretrained(folder)
    _write_code(folder, family=type(model).__name__)
    (folder / "policy.json").write_text(json.dumps(policy, indent=2) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(model_card(pruner, policy), encoding="utf-8")
    return folder


def pruned_config(pruner: LivePruner) -> PreTrainedConfig:
    """The dense model's config with the widths of the present policy."""
    dense, adapter = pruner.lm.model.config, pruner.lm.adapter
    widths: dict[int, dict[str, int]] = {}
    for coupling, atoms in zip(pruner.lm.couplings, pruner.atoms, strict=True):
        widths.setdefault(coupling.layer, {}).update(adapter.widths(dense, coupling.kind, atoms))
    config: Any = copy.deepcopy(dense)
    # Not every family says it; no layer's own number of heads tells it any longer.
    config.head_dim = getattr(dense, "head_dim", None) or (
        dense.hidden_size // dense.num_attention_heads
    )
    config.pruned_blocks = _pruned_blocks(pruner)
    config.architectures = ["PrunedForCausalLM"]
    config.auto_map = {"AutoModelForCausalLM": f"{_MODELING.stem}.PrunedForCausalLM"}
    config.dtype = str(pruner.lm.dtype).removeprefix("torch.")
    # Some families' configs check themselves by the dense model's number of heads.
    config.allow_global_per_layer_attribute_access = True
    config.per_layer_config = widths
    return config


def describe_blocks(adapter: Adapter, couplings: list[Coupling]) -> dict[str, dict[str, Any]]:
    """Per kind, by name within a decoder layer, the projections that hold a dense model's atoms."""
    counted_by = {"attention": adapter.kv_heads, "mlp": adapter.channels}
    first = {coupling.kind: coupling for coupling in reversed(couplings)}
    return {kind: {"counted_by": counted_by[kind], **_block(c)} for kind, c in first.items()}


def _pruned_blocks(pruner: LivePruner) -> dict[str, dict[str, Any]]:
    couplings = pruner.lm.couplings
    with pruner.at(pruner.space.dense.tolist()):  # no block stands outside of the model
        blocks = describe_blocks(pruner.lm.adapter, couplings)
    for coupling in couplings:
        if coupling.consumer.bias is not None:
            blocks[coupling.kind]["biases"].append(coupling.layer)
    return blocks


def _block(coupling: Coupling) -> dict[str, Any]:
    names = {module: name for name, module in coupling.parent.named_modules()}
    return {
        "name": coupling.attribute,
        "producers": {names[p.linear]: p.rows for p in coupling.producers},
        "consumer": names[coupling.consumer],
        "columns": coupling.columns,
        "bypassed": list(coupling.bypassed),
        "heads": coupling.heads,
        "biases": [],
    }


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """Everything that is saved, by name: what is tied once, and no view keeps its dense storage."""
    named = [*model.named_parameters(), *model.named_buffers()]
    once, saved = {name for name, _ in named}, model.state_dict()
    return {
        name: tensor.clone(memory_format=torch.contiguous_format)
        for name, tensor in saved.items()
        if name in once
    }


def _write_code(folder: Path, family: str) -> None:
    """Copies the modelling code with the family's class as its base, free of this package."""
    code = _MODELING.read_text(encoding="utf-8")
    code = code.replace("import LlamaForCausalLM as Base", f"import {family} as Base")
    code = code.replace("from ppf.pruning.empty_block import", "from .empty_block import")
    (folder / _MODELING.name).write_text(code, encoding="utf-8")
    (folder / _EMPTY_BLOCK.name).write_text(_EMPTY_BLOCK.read_text(encoding="utf-8"))
