"""Hugging Face folders as they are loaded for evaluation: no code in them runs unasked."""

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ppf.errors import PPFError
from ppf.export.huggingface import describe_blocks
from ppf.export.modeling_pruned import Narrowed
from ppf.llm.families import adapter_for
from ppf.records import read
from ppf.records.exported import ExportedConfig


def load_folder(folder: Path, dtype: torch.dtype, *, trust_remote_code: bool) -> PreTrainedModel:
    """The model of a folder; what `export_folder` wrote is built by this package's own code.

    Args:
        trust_remote_code: run the modelling code in the folder instead.

    Raises:
        PPFError: the folder cannot be loaded, or it needs code of its own and is not trusted.
    """
    try:
        if not trust_remote_code:
            config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
            if hasattr(config, "pruned_blocks"):
                return _pruned(folder, config, dtype)
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, trust_remote_code=trust_remote_code
        )
    except PPFError:
        raise
    except Exception as error:  # transformers wraps few of the errors that a folder can cause
        reason = f"{type(error).__name__}: {error}".split("\n")[0]
        raise PPFError(
            f"path={folder} cannot be loaded ({reason}): give another folder, or"
            " trust_remote_code=true if this one needs its own code and you have read it."
        ) from error


def _pruned(folder: Path, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    remedy = "export the policy again with prune.py"
    told = read(folder / "config.json", ExportedConfig, remedy)
    dense = copy.deepcopy(config)
    dense.per_layer_config = None
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(dense, trust_remote_code=False)
    if not _fits(told, model):
        raise PPFError(f"{folder}/config.json does not describe a pruned model: {remedy}.")
    made: Any = type("PrunedForCausalLM", (Narrowed, type(model)), {})
    pruned, found = made.from_pretrained(
        folder, config=config, dtype=dtype, output_loading_info=True
    )
    if wrong := [*found["missing_keys"], *found["unexpected_keys"]]:
        raise PPFError(f"the weights in {folder} lack or do not know {wrong[0]}: {remedy}.")
    return pruned


def _fits(told: dict[str, Any], dense: PreTrainedModel) -> bool:
    """Whether blocks are those of the family, and each is as wide as in the dense model at most."""
    adapter = adapter_for(dense)
    couplings = adapter.couplings(dense)
    blocks = {kind: block | {"biases": []} for kind, block in told["pruned_blocks"].items()}
    if blocks != describe_blocks(adapter, couplings):
        return False
    whole: dict[str, dict[str, int]] = {}
    fitting: dict[str, dict[str, int]] = {}
    for coupling in couplings:
        layer, kind = str(coupling.layer), coupling.kind
        atoms = told["per_layer_config"].get(layer, {}).get(blocks[kind]["counted_by"])
        left = coupling.atoms if atoms is None else min(atoms, coupling.atoms)
        whole.setdefault(layer, {}).update(adapter.widths(dense.config, kind, coupling.atoms))
        fitting.setdefault(layer, {}).update(adapter.widths(dense.config, kind, left))
    layers = whole.keys() | told["per_layer_config"].keys()
    return all(
        whole.get(layer, {}) | told["per_layer_config"].get(layer, {}) == fitting.get(layer)
        for layer in layers
    )
