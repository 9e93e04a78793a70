"""Loads Hugging Face folders for evaluation. Code in a folder runs only if the user trusts it."""

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ppf.errors import PPFError, reason
from ppf.export.huggingface import describe_blocks, listed_atoms
from ppf.export.modeling_pruned import Narrowed
from ppf.export.pruned import Pruned
from ppf.llm import Coupling, LanguageModel, adapter_for
from ppf.llm.checkpoint import (
    check_files,
    correct_ties,
    quiet,
    read_config,
    read_model,
    read_tokenizer,
    strings,
    weights_fault,
)
from ppf.pruning.empty_block import EmptyBlock
from ppf.records import read
from ppf.records.exported import ExportedConfig

_FOREIGN_CODE = {  # key → what its value then contains
    "auto_map": "--",
    "attn_implementation": "/",
    "_attn_implementation": "/",
    "base_model_name_or_path": "",
}
_REMEDY = "export the policy again"
Widths = dict[str, dict[str, int]]
"""Layer → name of a width in its config → the width."""


def load_folder(
    folder: Path, dtype: torch.dtype, *, trust_remote_code: bool
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and the tokenizer in a folder.

    Args:
        trust_remote_code: run the Python code in the folder. Otherwise PPF's own code builds the
            models that `export=huggingface` wrote, and a folder that needs other code is refused.

    Raises:
        PPFError: the folder cannot be loaded, or it contains code and is not trusted.
    """
    if trust_remote_code:
        return _trusted(folder, dtype)
    config, tokenizer = read_description(folder)
    pruned = hasattr(config, "pruned_blocks")
    made = _pruned_class(folder, config) if pruned else AutoModelForCausalLM
    return read_model(str(folder), config, dtype, "path", made), tokenizer


def read_description(folder: Path) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """The config and the tokenizer in a folder, without the code in it.

    Raises:
        PPFError: one of them or the weights are missing or damaged, or the folder needs its code.
    """
    _refuse_decilm(folder)
    config = read_config(str(folder), "path")
    if hasattr(config, "auto_map") and not hasattr(config, "pruned_blocks"):
        raise PPFError(
            f"path={folder} contains Python code: read it, then run it with trust_remote_code=true."
        )
    check_files(str(folder), "path")
    return config, read_tokenizer(str(folder), config, "path")


def read_pruned(folder: Path, dtype: torch.dtype) -> Pruned:
    """The pruned model in a folder that `export=huggingface` or recovery wrote.

    Raises:
        PPFError: the folder cannot be loaded, or holds no pruned model.
    """
    model, tokenizer = load_folder(folder, dtype, trust_remote_code=False)
    if not hasattr(model.config, "pruned_blocks"):
        raise PPFError(
            f"path={folder} holds no pruned model: give a folder that prune or recover wrote."
        )
    return as_pruned(model, tokenizer)


def as_pruned(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Pruned:
    """A pruned model that `load_folder` has loaded, in the form that export formats read."""
    config: Any = model.config
    config.per_layer_config = None  # the config has the dense model's widths from here on
    adapter = adapter_for(config)
    with torch.device("meta"):
        dense = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    couplings, atoms = [], []
    for coupling in adapter.couplings(dense):
        layer = adapter.layers(model)[coupling.layer]
        block = layer.get_submodule(coupling.attribute)
        if isinstance(block, EmptyBlock):
            _empty(coupling, block.bias)
            atoms.append(0)
        else:
            find = adapter.attention if coupling.kind == "attention" else adapter.mlp
            coupling = find(coupling.layer, layer)
            atoms.append(coupling.atoms)
        couplings.append(coupling)
    blocks = [getattr(coupling.parent, coupling.attribute) for coupling in couplings]
    lm = LanguageModel(model.eval().requires_grad_(False), tokenizer, adapter)
    return Pruned(lm, couplings, blocks, atoms)


def _empty(coupling: Coupling, bias: nn.Parameter | None) -> None:
    """Gives the projections of a block without weights zero rows and columns."""
    consumer: Any = coupling.consumer
    for linear in (producer.linear for producer in coupling.producers):
        linear.weight = nn.Parameter(torch.empty(0, linear.in_features))
        if linear.bias is not None:
            linear.bias = nn.Parameter(torch.empty(0))
    consumer.weight = nn.Parameter(torch.empty(consumer.out_features, 0))
    consumer.register_parameter("bias", bias)
    for module in getattr(coupling.parent, coupling.attribute).modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:  # norms over heads that do not exist
                setattr(module, name, nn.Parameter(torch.ones(parameter.shape)))


def _refuse_decilm(folder: Path) -> None:
    file = folder / "config.json"
    if file.is_file() and '"block_configs"' in file.read_text(encoding="utf-8", errors="replace"):
        raise PPFError(
            f"path={folder} is a model for vLLM (export=decilm), which transformers cannot load:"
            " give the folder that export=huggingface writes of the same policy."
        )


def _trusted(folder: Path, dtype: torch.dtype) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    _refuse_decilm(folder)
    for name in ("config.json", "tokenizer_config.json", "adapter_config.json"):
        file = folder / name
        if file.is_file() and _names_foreign_code(file):
            raise PPFError(f"{file} names code of another repository: give another folder.")
    try:
        with quiet():
            read: Any = AutoModelForCausalLM.from_pretrained
            model, found = read(
                folder, dtype=dtype, trust_remote_code=True, output_loading_info=True
            )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    except Exception as error:  # the folder's code can raise any error
        raise PPFError(
            f"path={folder} cannot be loaded ({reason(error)}): give another folder."
        ) from error
    if fault := weights_fault(model, found, dtype):
        raise PPFError(f"path={folder} {fault}: give another folder.")
    correct_ties(model)
    return model, tokenizer


def _names_foreign_code(file: Path) -> bool:
    """Whether transformers would run code from elsewhere: modelling code, kernels, or a base model.

    Raises:
        PPFError: the file is damaged.
    """
    try:
        entries: Any = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise PPFError(f"{file} is damaged ({reason(error)}): give another folder.") from error
    return any(
        sign in value for key, sign in _FOREIGN_CODE.items() for value in _values(entries, key)
    )


def _values(entries: Any, key: str) -> list[str]:
    """All strings below a key, at any depth of a JSON value."""
    if isinstance(entries, list):
        return [found for entry in entries for found in _values(entry, key)]
    if not isinstance(entries, dict):
        return []
    own = list(strings(entries.get(key)))
    return own + [found for entry in entries.values() for found in _values(entry, key)]


def _pruned_class(folder: Path, config: PreTrainedConfig) -> Any:
    """The class of a pruned model, after a check of its config.json."""
    record = read(folder / "config.json", ExportedConfig, _REMEDY)
    config = copy.deepcopy(config)
    config.per_layer_config = None
    try:
        with torch.device("meta"):
            dense = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    except Exception as error:  # transformers does not check all values itself
        raise PPFError(
            f"{folder}/config.json does not describe a model ({reason(error)}): {_REMEDY}."
        ) from error
    if not _fits(record, dense):
        raise PPFError(f"{folder}/config.json does not describe a pruned model: {_REMEDY}.")
    return type("PrunedForCausalLM", (Narrowed, type(dense)), {})


def _fits(record: dict[str, Any], dense: PreTrainedModel) -> bool:
    """Whether the blocks are those of the family, and none is wider than in the dense model."""
    adapter = adapter_for(dense.config)
    couplings = adapter.couplings(dense)
    lists: dict[str, Any] = {"biases": [], "empty": []}
    blocks = {kind: block | lists for kind, block in record["pruned_blocks"].items()}
    if blocks != describe_blocks(adapter, couplings):
        return False
    # transformers writes "03" where there are ten layers or more.
    given: Widths = {str(int(layer)): w for layer, w in record["per_layer_config"].items()}
    whole: Widths = {}
    fitting: Widths = {}
    for coupling in couplings:
        layer, kind, atoms = str(coupling.layer), coupling.kind, coupling.atoms
        left = min(given.get(layer, {}).get(blocks[kind]["counted_by"], atoms), atoms)
        if coupling.layer in record["pruned_blocks"][kind].get("empty", ()):
            left = 0
        listed = listed_atoms(kind, left)
        whole.setdefault(layer, {}).update(adapter.widths(dense.config, kind, atoms))
        fitting.setdefault(layer, {}).update(adapter.widths(dense.config, kind, listed))
    # The file may omit widths that equal the dense model's.
    widths = {layer: whole.get(layer, {}) | given.get(layer, {}) for layer in whole | given}
    return widths == fitting
