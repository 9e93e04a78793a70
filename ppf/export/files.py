"""Files of a folder that transformers reads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TOKENIZER = (
    "*token*.json",
    "tokenizer.model",
    "chat_template.*",
    "additional_chat_templates/*",
    "vocab.*",
    "merges.txt",
    "spiece.model",
)


REPLACED = (*_TOKENIZER, "generation_config.json", "README.md")
"""Files of a folder that an export writes or deletes, beside the model's own."""


def write_policy(folder: Path, policy: Mapping[str, Any]) -> None:
    """Writes policy.json, which marks the folder as PPF's own, before all other files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "policy.json").write_text(json.dumps(policy, indent=2) + "\n", encoding="utf-8")


def write_weights(
    tensors: Mapping[str, Tensor], folder: Path, dtype: torch.dtype | None = None
) -> None:
    """Writes tensors in place of the folder's present weights, as safetensors of at most 5 GB.

    Only one file's tensors are copied at a time: they may be parts of larger ones.

    Args:
        dtype: of the files; None: as the tensors are.
    """
    shapes = {n: torch.empty_like(t, dtype=dtype, device="meta") for n, t in tensors.items()}
    shards = split_torch_state_dict_into_shards(shapes)
    for earlier in folder.glob("model*.safetensors*"):
        earlier.unlink()
    for file, names in shards.filename_to_tensors.items():
        parts = {
            name: tensors[name].to("cpu", dtype, copy=True, memory_format=torch.contiguous_format)
            for name in names
        }
        save_file(parts, folder / file, {"format": "pt"})
        del parts  # before the next file's tensors are copied
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))


def write_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a tokenizer in place of the folder's present one, whose files it may not overwrite."""
    for pattern in _TOKENIZER:
        for earlier in folder.glob(pattern):
            earlier.unlink()
    tokenizer.save_pretrained(folder)


def write_generation_config(model: PreTrainedModel, folder: Path) -> None:
    """Writes the model's defaults for generation as they are.

    `save_pretrained` of transformers 5.20 to 5.22 refuses values that loading only warns of, such
    as a temperature without `do_sample`.
    """
    model.generation_config.to_json_file(folder / "generation_config.json")
