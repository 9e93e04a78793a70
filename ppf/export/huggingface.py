"""Exports a pruned model as a Hugging Face folder, which transformers loads without PPF.

transformers' own `per_layer_config` holds the widths. It overrides `num_key_value_heads`,
`num_attention_heads` and `intermediate_size` layer by layer; the global values stay those of the
dense model. transformers 5.24 and vLLM use it to size KV caches, but not to build layers. vLLM
needs a KV cache in every layer, so a layer without attention is listed with one KV group.

So the folder contains `modeling_pruned.py`, the same file for all families. It builds the dense
model and narrows its projections. `pruned_blocks` in the config lists these projections, how many
rows or columns one atom has in each, and the layers that lack the block (`empty`).
"""

import copy
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from ppf.evaluation.size import parameters, weight_bytes
from ppf.export import modeling_pruned
from ppf.export.base import Exporter, tell_rounding
from ppf.export.card import Form, write_card
from ppf.export.files import (
    write_generation_config,
    write_policy,
    write_tokenizer,
    write_weights,
)
from ppf.export.pruned import Pruned
from ppf.llm import Adapter, Coupling
from ppf.llm.loading import dtype_name
from ppf.pruning import LivePruner

_MODELING = Path(modeling_pruned.__file__)
_EMPTY_BLOCK = Path(__file__).parents[1] / "pruning" / "empty_block.py"
_OWN_CODE: dict[str, Any] = {
    "architectures": ["PrunedForCausalLM"],
    "auto_map": {
        "AutoConfig": f"{_MODELING.stem}.PrunedConfig",
        "AutoModel": f"{_MODELING.stem}.PrunedModel",
        "AutoModelForCausalLM": f"{_MODELING.stem}.PrunedForCausalLM",
    },
}
_CODE_OF_OTHERS = ("custom_pipelines", "attn_implementation", "_attn_implementation")
"""Keys of a config.json that may name code, such as attention kernels of the hub."""
_USE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("FOLDER", trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained("FOLDER")
```
It needs transformers 5.20 or later. `trust_remote_code=True` runs two files of this folder:
`modeling_pruned.py` and `empty_block.py`. `policy.json` lists what each layer keeps."""


class HuggingFace(Exporter):
    """Writes a Hugging Face folder."""

    def write(self, pruner: LivePruner, folder: Path, policy: Mapping[str, Any]) -> Path:
        tell_rounding(policy)
        return export_folder(pruner, folder, policy)


def export_folder(pruner: LivePruner, folder: Path, policy: Mapping[str, Any]) -> Path:
    """Writes the model at its present policy, with config, code, tokenizer and model card.

    `AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` loads it without PPF.

    Args:
        folder: created if it is missing; existing files of the same names are overwritten.
        policy: the contents of policy.json.

    Returns:
        The folder.
    """
    count = parameters(pruner.lm.model)
    write_without_card(pruner, folder, policy)  # undoes a re-estimated compensation
    _write_card(folder, Pruned.of(pruner), pruner.lm.dtype, count, policy)
    return folder


def write_without_card(pruner: LivePruner, folder: Path, policy: Mapping[str, Any]) -> None:
    """Writes the same folder without a model card. The policy then needs no measurements."""
    model = pruner.lm.model
    write_policy(folder, policy)
    write_weights(_weights(model), folder)
    pruned_config(pruner).save_pretrained(folder)
    write_generation_config(model, folder)
    write_tokenizer(pruner.lm.tokenizer, folder)
    _write_code(folder, type(model).__name__, type(model.base_model).__name__)


def export_recovered(
    model: Pruned,
    dtype: torch.dtype,
    start: Path,
    folder: Path,
    policy: Mapping[str, Any],
) -> Path:
    """Writes a pruned model with trained weights. Only its config.json comes from the old folder.

    Args:
        model: the trained model.
        dtype: of the weights in the folder.
        start: the pruned model's folder.
        folder: created if it is missing; existing files of the same names are overwritten.
        policy: the contents of policy.json, with the entry `recovered`.

    Returns:
        The new folder.
    """
    write_policy(folder, policy)
    trained = model.lm.model
    write_weights(_weights(trained), folder, dtype)
    write_generation_config(trained, folder)
    write_tokenizer(model.lm.tokenizer, folder)
    family: Any = AutoModelForCausalLM._model_mapping[type(trained.config)]
    _write_code(folder, family.__name__, type(trained.base_model).__name__)
    config = json.loads((start / "config.json").read_text(encoding="utf-8"))
    config |= {"dtype": dtype_name(dtype), **_OWN_CODE}
    for key in _CODE_OF_OTHERS:
        config.pop(key, None)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _write_card(folder, model, dtype, parameters(model.lm.model), policy)
    return folder


def _write_card(
    folder: Path, model: Pruned, dtype: torch.dtype, count: int, policy: Mapping[str, Any]
) -> None:
    form = Form("transformers", _USE, weight_bytes(folder), dtype.itemsize, count)
    write_card(folder, model, policy, form)


def pruned_config(pruner: LivePruner) -> PreTrainedConfig:
    """The dense model's config with the widths of the present policy."""
    dense, adapter = pruner.lm.model.config, pruner.lm.adapter
    widths: dict[int, dict[str, int]] = {}
    for coupling, atoms in zip(pruner.lm.couplings, pruner.atoms, strict=True):
        listed = listed_atoms(coupling.kind, atoms)
        widths.setdefault(coupling.layer, {}).update(adapter.widths(dense, coupling.kind, listed))
    config: Any = copy.deepcopy(dense)
    # Some configs omit head_dim, and a pruned layer's number of heads does not determine it.
    config.head_dim = getattr(dense, "head_dim", None) or (
        dense.hidden_size // dense.num_attention_heads
    )
    config.pruned_blocks = _pruned_blocks(pruner)
    config.architectures, config.auto_map = _OWN_CODE["architectures"], _OWN_CODE["auto_map"]
    config.dtype = dtype_name(pruner.lm.dtype)
    # Some families' configs validate themselves with the dense model's number of heads.
    config.allow_global_per_layer_attribute_access = True
    config.per_layer_config = widths
    return config


def listed_atoms(kind: str, atoms: int) -> int:
    """Atoms of a block as `per_layer_config` lists them: one KV group for no attention."""
    return max(atoms, 1) if kind == "attention" else atoms


def describe_blocks(adapter: Adapter, couplings: list[Coupling]) -> dict[str, dict[str, Any]]:
    """Describes the blocks of a dense model for `pruned_blocks`.

    Returns:
        Kind of block → names of its projections within a decoder layer, and the rows or columns
        that one atom has in them.
    """
    counted_by = {"attention": adapter.kv_heads, "mlp": adapter.channels}
    first = {coupling.kind: coupling for coupling in reversed(couplings)}
    return {kind: {"counted_by": counted_by[kind], **_block(c)} for kind, c in first.items()}


def _pruned_blocks(pruner: LivePruner) -> dict[str, dict[str, Any]]:
    couplings = pruner.lm.couplings
    biased = [c for c in couplings if c.consumer.bias is not None]
    empty = [c for c, atoms in zip(couplings, pruner.atoms, strict=True) if not atoms]
    # The dense policy puts empty blocks back into the model. It also undoes re-estimation, which
    # adds biases to blocks of any width.
    with pruner.at(pruner.space.dense.tolist()):
        blocks = describe_blocks(pruner.lm.adapter, couplings)
    for coupling in biased:
        blocks[coupling.kind]["biases"].append(coupling.layer)
    for coupling in empty:
        blocks[coupling.kind]["empty"].append(coupling.layer)
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
        "empty": [],
    }


def _weights(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name, tied ones once."""
    named = [*model.named_parameters(), *model.named_buffers()]
    once, saved = {name for name, _ in named}, model.state_dict()
    return {name: tensor for name, tensor in saved.items() if name in once}


def _write_code(folder: Path, family: str, base: str) -> None:
    """Copies the modelling code, with the family's classes as its bases and no import of PPF.

    Args:
        family: name of the dense model's class.
        base: name of its class without the head.
    """
    code = _MODELING.read_text(encoding="utf-8")
    code = code.replace("import LlamaForCausalLM as Base", f"import {family} as Base")
    code = code.replace("import LlamaModel as BaseModel", f"import {base} as BaseModel")
    code = code.replace("from ppf.pruning.empty_block import", "from .empty_block import")
    (folder / _MODELING.name).write_text(code, encoding="utf-8")
    (folder / _EMPTY_BLOCK.name).write_text(_EMPTY_BLOCK.read_text(encoding="utf-8"))
