"""Files of exported models, and what they may replace."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedConfig

from ppf.errors import PPFError
from ppf.export.pruned import Pruned
from ppf.progress import say

_TOKENIZER = (
    "*token*.json",
    "tokenizer.model",
    "chat_template.*",
    "additional_chat_templates/*",
    "vocab.*",
    "merges.txt",
    "spiece.model",
)
_REPLACED = ("*.gguf", "*.safetensors", "config.json", *_TOKENIZER, "generation_config.json")
"""Files that an export writes or deletes, beside README.md."""
_OWN = ("policy.json", "agent.json")  # an export writes one of these first
_BESIDE = (
    *("README.md", "model.safetensors.index.json", "modeling_pruned.py", "empty_block.py"),
    *("configuration_decilm.py", "experts.py"),
)


def check_out(out: str | Path, record: Mapping[str, Any], folder: str | Path | None = None) -> None:
    """Raises PPFError if an export would lose a model; says so if it replaces one that PPF wrote.

    Args:
        out: folder of the export.
        record: policy.json or agent.json, whose dense model may be a local folder; empty: none.
        folder: that the command reads.
    """
    here, dense = Path(out), record.get("config", {}).get("model", {}).get("path")
    for what, place in (("that is read", folder), ("of the dense model", dense)):
        if place and here.resolve() == Path(place).resolve():
            raise PPFError(f"out={out} is the folder {what}: give another out=FOLDER.")
    present = [file.name for name in (*_REPLACED, "README.md") for file in here.glob(name)]
    if not present:
        return
    if not any((here / name).exists() for name in _OWN):
        raise PPFError(
            f"an export would replace {present[0]} in out={out}, which is not a folder that PPF"
            " wrote: give another folder."
        )
    say(f"out={out} has {present[0]} already: files of the same names will be replaced.")


def exported_files(folder: Path) -> list[Path]:
    """The files in a folder that exports write."""
    patterns = (*_REPLACED, *_OWN, *_BESIDE)
    return sorted({file for pattern in patterns for file in folder.glob(pattern)})


def write_folder(
    folder: Path,
    model: Pruned,
    policy: Mapping[str, Any],
    config: PreTrainedConfig,
    tensors: Mapping[str, Tensor],
    code: Mapping[str, str],
) -> None:
    """Writes a folder that transformers or vLLM reads, without its model card.

    Args:
        code: name of a file → Python code.
    """
    if policy.get("types"):
        say(
            "The policy quantises weights. Only export=gguf stores them in fewer bits; this folder"
            " stores the rounded values in the number format that dtype= names."
        )
    if not policy:  # of a pruned model that the dense one replaces
        for name in ("policy.json", "README.md"):
            (folder / name).unlink(missing_ok=True)
    write_policy(folder, policy)
    write_weights(tensors, folder)
    config.save_pretrained(folder)
    # As they are: `save_pretrained` of transformers 5.20 to 5.22 refuses defaults for generation
    # that loading only warns of, such as a temperature without `do_sample`.
    model.lm.model.generation_config.to_json_file(folder / "generation_config.json")
    for pattern in _TOKENIZER:  # of an earlier tokenizer, which may have other files
        for earlier in folder.glob(pattern):
            earlier.unlink()
    model.lm.tokenizer.save_pretrained(folder)
    for name, text in code.items():
        (folder / name).write_text(text, encoding="utf-8")


def write_policy(folder: Path, policy: Mapping[str, Any]) -> None:
    """Writes policy.json, which marks the folder as PPF's own, before all other files.

    A dense model has no policy, and the folder gets none.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not policy:
        return
    (folder / "policy.json").write_text(json.dumps(policy, indent=2) + "\n", encoding="utf-8")


def write_weights(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Writes tensors in place of the folder's present weights, as safetensors of at most 5 GB.

    Only one file's tensors are copied at a time: they may be parts of larger ones.
    """
    shapes = {name: torch.empty_like(t, device="meta") for name, t in tensors.items()}
    shards = split_torch_state_dict_into_shards(shapes)
    for earlier in folder.glob("model*.safetensors*"):
        earlier.unlink()
    for file, names in shards.filename_to_tensors.items():
        parts = {
            name: tensors[name].to("cpu", copy=True, memory_format=torch.contiguous_format)
            for name in names
        }
        save_file(parts, folder / file, {"format": "pt"})
        del parts  # before the next file's tensors are copied
    if shards.is_sharded:
        index = {"metadata": shards.metadata, "weight_map": shards.tensor_to_filename}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
