"""Loads Hugging Face folders as data: code in them does not run."""

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from ppf.errors import PPFError, reason
from ppf.export.added_keys import ExportedConfig
from ppf.export.huggingface import describe_blocks, listed_atoms
from ppf.export.modeling_pruned import Narrowed
from ppf.export.pruned import Pruned, whole
from ppf.llm import Coupling, LanguageModel, adapter_for
from ppf.llm.checkpoint import read_config, read_model, read_tokenizer
from ppf.pruning.empty_block import EmptyBlock
from ppf.records import read

_REMEDY = "export the policy again"
_OF_QUERIES = ("by_query", "queries", "ratio")
Widths = dict[str, dict[str, int]]
"""Layer → name of a width in its config → the width."""


def load_folder(
    folder: Path, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model and the tokenizer in a folder, whose own code does not run.

    PPF's code builds the models that `export=huggingface` wrote.

    Raises:
        PPFError: the folder cannot be loaded, or it needs its code.
    """
    config, tokenizer = read_description(folder)
    pruned = hasattr(config, "pruned_blocks")
    made = _checked_class(folder, config) if pruned else AutoModelForCausalLM
    return read_model(str(folder), config, dtype, made), tokenizer


def read_description(folder: Path) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase]:
    """The config and the tokenizer in a folder, without the code in it.

    Raises:
        PPFError: one of them is missing or damaged, or the folder needs its code.
    """
    config = read_config(str(folder))
    if hasattr(config, "auto_map") and not hasattr(config, "pruned_blocks"):
        raise PPFError(
            f"path={folder} needs its own Python code, which PPF does not run: give another folder."
        )
    return config, read_tokenizer(str(folder), config)


def read_pruned(folder: Path, dtype: torch.dtype) -> Pruned:
    """The model in a folder in the form that exports read: pruned by PPF, or dense.

    Raises:
        PPFError: the folder cannot be loaded.
    """
    model, tokenizer = load_folder(folder, dtype)
    model.eval().requires_grad_(False)
    if not hasattr(model.config, "pruned_blocks"):  # all of its layers are equal
        return whole(LanguageModel(model, tokenizer, adapter_for(model.config)))
    return described(model, tokenizer)


def described(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Pruned:
    """A model of the class `Narrowed`, in the form that exports read."""
    config: Any = model.config
    config.per_layer_config = None  # the config is the dense model's from here on
    del config.pruned_blocks, config.auto_map
    adapter = adapter_for(config)
    with torch.device("meta"):
        dense = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    couplings, shapes = [], []
    for coupling in adapter.couplings(dense):
        layer = adapter.layers(model)[coupling.layer]
        block = layer.get_submodule(coupling.attribute)
        if isinstance(block, EmptyBlock):
            _empty(coupling, block.bias)
            shapes.append((0, coupling.queries))
        else:
            find = adapter.attention if coupling.kind == "attention" else adapter.mlp
            coupling = find(coupling.layer, layer)
            shapes.append((coupling.atoms, coupling.queries))
        couplings.append(coupling)
    blocks = [coupling.block for coupling in couplings]
    config.architectures = [type(dense).__name__]
    lm = LanguageModel(model, tokenizer, adapter)
    return Pruned(lm, couplings, blocks, shapes)


def _empty(coupling: Coupling, bias: nn.Parameter | None) -> None:
    """Gives the projections of a block without weights zero rows and columns."""
    consumer: Any = coupling.consumer
    for linear in (producer.linear for producer in coupling.producers):
        linear.weight = nn.Parameter(torch.empty(0, linear.in_features))
        if linear.bias is not None:
            linear.bias = nn.Parameter(torch.empty(0))
    consumer.weight = nn.Parameter(torch.empty(consumer.out_features, 0))
    consumer.register_parameter("bias", bias)
    for module in coupling.block.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta:  # norms over heads that do not exist
                setattr(module, name, nn.Parameter(torch.ones(parameter.shape)))


def pruned_class(dense: PreTrainedModel) -> Any:
    """The class of pruned models of a family, whose own model is given."""
    return type("PrunedForCausalLM", (Narrowed, type(dense)), {})


def _checked_class(folder: Path, config: PreTrainedConfig) -> Any:
    """The class of a pruned model, after a check of its config.json."""
    record = read(folder / "config.json", ExportedConfig, _REMEDY)
    config = copy.deepcopy(config)
    config.per_layer_config = None
    try:
        with torch.device("meta"):
            dense = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        if not _fits(record, dense):
            raise ValueError("its blocks are not those of the family")
    except Exception as error:  # transformers does not check all values itself
        raise PPFError(
            f"{folder}/config.json does not describe a pruned model ({reason(error)}): {_REMEDY}."
        ) from error
    return pruned_class(dense)


def _fits(record: dict[str, Any], dense: PreTrainedModel) -> bool:
    """Whether the blocks are those of the family, and none is wider than in the dense model."""
    adapter = adapter_for(dense.config)
    couplings = adapter.couplings(dense)
    lists: dict[str, Any] = {"biases": [], "empty": []}
    described = describe_blocks(adapter, couplings)
    blocks = {kind: block | lists for kind, block in record["pruned_blocks"].items()}
    for kind, block in blocks.items():  # earlier versions did not write the keys of queries
        own = described.get(kind, {})
        blocks[kind] = {key: own[key] for key in _OF_QUERIES if key in own} | block
    if blocks != described:
        return False
    # transformers writes "03" where there are ten layers or more.
    given: Widths = {str(int(layer)): w for layer, w in record["per_layer_config"].items()}
    whole: Widths = {}
    fitting: Widths = {}
    for coupling in couplings:
        layer, kind, queries = str(coupling.layer), coupling.kind, coupling.queries
        every = adapter.widths(kind, coupling.atoms, queries)
        here = every | given.get(layer, {})
        left = min(here[blocks[kind]["counted_by"]], coupling.atoms)
        if coupling.layer in record["pruned_blocks"][kind].get("empty", ()):
            left = 0
        elif queries > 1 and left:
            queries = min(max(here["num_attention_heads"] // left, 1), queries)
        listed = listed_atoms(kind, left)
        whole.setdefault(layer, {}).update(every)
        fitting.setdefault(layer, {}).update(adapter.widths(kind, listed, queries))
    # The file may omit widths that equal the dense model's.
    widths = {layer: whole.get(layer, {}) | given.get(layer, {}) for layer in whole | given}
    return widths == fitting
