"""Exports a pruned model as one GGUF file, which unmodified llama.cpp runs.

llama.cpp's architecture `deci` is a Llama whose layers may differ in width. Arrays in the metadata
hold the widths.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import gguf
from gguf import GGMLQuantizationType, LlamaFileType

from ppf.errors import PPFError
from ppf.export.base import Exporter, check_blocks
from ppf.export.gguf_tensors import tensor_type, tensors, written_atoms
from ppf.export.gguf_vocabulary import write_vocabulary
from ppf.llm import LanguageModel
from ppf.pruning import LivePruner

_ARCHITECTURE = gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.DECI]
_FAMILIES = ("llama", "mistral")
_ROPE = ("default", "linear", "llama3")
_TYPES = {
    "f16": (GGMLQuantizationType.F16, LlamaFileType.MOSTLY_F16),
    "q8_0": (GGMLQuantizationType.Q8_0, LlamaFileType.MOSTLY_Q8_0),
}


@dataclass(frozen=True)
class GGUF(Exporter):
    """Writes one GGUF file.

    Args:
        type: number format of the matrices.
    """

    type: Literal["f16", "q8_0"]

    def check(self, lm: LanguageModel) -> None:
        check_blocks(lm)
        _check(lm.model.config, self.type)
        nowhere = gguf.GGUFWriter(None, _ARCHITECTURE)
        write_vocabulary(nowhere, lm.tokenizer, lm.model.config.vocab_size)

    def write(self, pruner: LivePruner, folder: Path, policy: Mapping[str, Any]) -> Path:
        return export_gguf(pruner, folder, policy, type=self.type)


def export_gguf(pruner: LivePruner, folder: Path, policy: Mapping[str, Any], *, type: str) -> Path:
    """Writes the model at its present policy, with its tokenizer.

    Args:
        folder: created if it is missing.
        policy: the contents of policy.json, stored under the key `ppf.policy`. Its perplexities
            were measured before the matrices are converted to `type`.
        type: number format of the matrices, f16 or q8_0; vectors are float32.

    Returns:
        Path of the file.

    Raises:
        PPFError: llama.cpp does not support the model or its tokenizer, or the type is unknown.
    """
    lm = pruner.lm
    _check(lm.model.config, type)
    matrices, file_type = _TYPES[type]
    folder.mkdir(parents=True, exist_ok=True)
    name = policy.get("model", "model")
    path = folder / f"{name}-{type}.gguf"

    writer = gguf.GGUFWriter(path, _ARCHITECTURE)
    writer.add_file_type(file_type)
    writer.add_name(name)
    writer.add_string("ppf.policy", json.dumps(policy))
    _describe(writer, pruner)
    write_vocabulary(writer, lm.tokenizer, lm.model.config.vocab_size)
    for name, tensor in tensors(pruner):
        kind = tensor_type(tensor, matrices)
        data = gguf.quants.quantize(tensor.float().numpy(force=True), kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _check(config: Any, type: str) -> None:
    if type not in _TYPES:
        raise PPFError(f"export.type={type} is unknown: give {' or '.join(_TYPES)}.")
    if config.model_type not in _FAMILIES:
        raise PPFError(
            f"llama.cpp supports layers of different widths for {' and '.join(_FAMILIES)} models"
            f" only, not for {config.model_type}: give export=huggingface."
        )
    rope = config.rope_parameters["rope_type"]
    if rope not in _ROPE or config.hidden_act != "silu":
        raise PPFError(
            f"llama.cpp does not support this model's position encoding ({rope}) or activation"
            f" ({config.hidden_act}): give export=huggingface."
        )


def _describe(writer: gguf.GGUFWriter, pruner: LivePruner) -> None:
    """Writes the model's shape as metadata."""
    config: Any = pruner.lm.model.config
    atoms: dict[str, list[int]] = {"attention": [], "mlp": []}
    for coupling, written in zip(pruner.lm.couplings, written_atoms(pruner), strict=True):
        atoms[coupling.kind].append(written)
    queries = config.num_attention_heads // config.num_key_value_heads
    # `deci` has no sliding window. Up to the window's length, full attention gives the same result.
    window = getattr(config, "sliding_window", None) or config.max_position_embeddings

    writer.add_type("model")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(min(config.max_position_embeddings, window))
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count([queries * groups for groups in atoms["attention"]])
    writer.add_head_count_kv(atoms["attention"])
    writer.add_feed_forward_length(atoms["mlp"])
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
