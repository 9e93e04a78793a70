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

from ppf.errors import PPFError

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
_OF_MODELS = ("config.json", "*.safetensors")
_OWN = ("policy.json", "agent.json")  # an export writes one of these first


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


def refuse_overwriting(out: str | Path, folder: str | Path, what: str = "that is read") -> None:
    """Raises PPFError if a command would write into a folder that must stay as it is.

    Args:
        what: says which folder it is, for the message.
    """
    if Path(out).resolve() == Path(folder).resolve():
        raise PPFError(f"out={out} is the folder {what}: give another out=FOLDER.")


def refuse_foreign(out: str | Path) -> None:
    """Raises PPFError if an export would replace files in `out` that PPF has not written."""
    here = Path(out)
    replaced = [file.name for name in (*_OF_MODELS, *REPLACED) for file in here.glob(name)]
    of_gguf = replaced == ["README.md"] and any(here.glob("*.gguf"))  # what a GGUF export writes
    if replaced and not of_gguf and not any((here / name).exists() for name in _OWN):
        raise PPFError(
            f"an export would replace {replaced[0]} in out={out}, which is not a folder that PPF"
            " wrote: give another folder."
        )


def refuse_overwriting_dense(out: str | Path, record: Mapping[str, Any]) -> None:
    """Raises PPFError if a command would overwrite the dense model of a policy or an agent."""
    if dense := record["config"]["model"].get("path"):
        refuse_overwriting(out, dense, "of the dense model")
