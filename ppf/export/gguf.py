"""Exports a pruned model as one GGUF file, which unmodified llama.cpp runs.

Arrays in the metadata hold the widths of the layers, if llama.cpp's architecture supports such
arrays.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import gguf
import numpy as np
from gguf import GGMLQuantizationType, LlamaFileType
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ppf.artefacts import draft
from ppf.errors import PPFError
from ppf.export import k_quants
from ppf.export.base import Exporter, WindowsOf
from ppf.export.card import write_card
from ppf.export.files import write_policy
from ppf.export.gguf_architectures import Architecture, architecture_of, rope_of
from ppf.export.gguf_tensors import file_bytes, names_in_file, site_of, tensor_type, tensors
from ppf.export.gguf_vocabulary import write_vocabulary
from ppf.export.k_quants import MIXTURES, input_squares, quantized
from ppf.export.pruned import Pruned
from ppf.progress import say
from ppf.pruning.rounding import BLOCK, BLOCK_BYTES
from ppf.ranges import Natural
from ppf.records.values import FileFormat, NumberFormat
from ppf.text.windows import evenly


@dataclass(frozen=True)
class GGUF(Exporter):
    """Writes one GGUF file.

    Args:
        type: number format of the matrices, except of sites for which the policy names a format;
            vectors are float32.
        importance_windows: of calibration text, for the importance matrix of K-quants; 0: none.
        importance: mean squares of the inputs of matrices, by the names of these.
    """

    type: FileFormat
    importance_windows: Natural
    importance: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        if self.type in MIXTURES or self.importance_windows:
            k_quants.library()  # before the work

    def weighted(self, model: Pruned, windows: WindowsOf) -> "GGUF":
        if not self.importance_windows:
            return self
        squares = input_squares(model.lm.model, evenly(windows(), self.importance_windows))
        return replace(self, importance=names_in_file(squares, model, architecture_of(model)))

    def check(self, model: Pruned) -> None:
        nowhere = gguf.GGUFWriter(None, architecture_of(model).name)
        write_vocabulary(nowhere, model.lm.tokenizer, model.lm.model.config.vocab_size)

    def bytes(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
        with TemporaryDirectory() as folder:
            file = Path(folder, "vocabulary.gguf")
            with closing(gguf.GGUFWriter(file, "llama")) as writer:
                write_vocabulary(writer, tokenizer, model.config.vocab_size)
                writer.write_header_to_file()
                writer.write_kv_data_to_file()
            return file_bytes(model, self.type) + file.stat().st_size

    def bytes_per_weight(self, model: PreTrainedModel) -> float:
        if self.type in MIXTURES:
            raise PPFError(
                f"the size of a {self.type} file depends on the widths that pruning leaves: give"
                " ratio= in place of target=, or export.type=q8_0, q5_0 or q4_0."
            )
        return BLOCK_BYTES[cast(NumberFormat, self.type)] / BLOCK

    def write(self, model: Pruned, folder: Path, policy: Mapping[str, Any]) -> Path:
        """Writes the file, which also stores the policy, under the key `ppf.policy`."""
        reader = architecture_of(model)
        name = policy.get("model") or Path(model.lm.model.name_or_path or "").name or "model"
        file_name = re.sub(r"[^\w.-]", "_", name)  # a hub id has a slash
        path = folder / f"{file_name}-{self.type}.gguf"
        if not (folder / "config.json").exists():  # else of a model there, which stays as it is
            write_policy(folder, policy)
        with draft(path) as file, closing(gguf.GGUFWriter(file, reader.name)) as writer:
            self._write(writer, model, reader, name, policy)
        chats = model.lm.tokenizer.chat_template
        how = "` chats with it" if chats else " -p TEXT` continues a text"
        use = (
            f"`llama-cli -m {path.name}{how}; llama.cpp needs no change. The perplexities below are"
            f" those before the conversion to {self.type}."
        )
        write_card(folder, model, policy, library="gguf", use=use)
        return path

    def _write(
        self,
        writer: gguf.GGUFWriter,
        model: Pruned,
        reader: Architecture,
        name: str,
        policy: Mapping[str, Any],
    ) -> None:
        config = model.lm.model.config
        writer.add_file_type(LlamaFileType[f"MOSTLY_{self.type.upper()}"])
        writer.add_name(name)
        if policy:
            writer.add_string("ppf.policy", json.dumps(policy))
        _describe(writer, model, reader)
        write_vocabulary(writer, model.lm.tokenizer, config.vocab_size)
        types, kinds = policy.get("types") or {}, list[GGMLQuantizationType]()
        weights = Counter[GGMLQuantizationType]()
        for key, tensor in tensors(model, reader):
            kind = tensor_type(key, tensor, types.get(site_of(key), self.type), config)
            size = math.prod(gguf.quant_shape_to_byte_shape(tensor.shape, kind))
            writer.add_tensor_info(key, tensor.shape, np.dtype(np.float32), size, kind)
            kinds.append(kind)
            weights[kind] += tensor.numel()
        _say_fallbacks(self.type, weights)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for kind, (key, tensor) in zip(kinds, tensors(model, reader), strict=True):
            squares = (self.importance or {}).get(key)
            if squares is not None and len(squares) != tensor.shape[-1]:  # filled up with zeros
                squares = None
            writer.write_tensor_data(quantized(tensor, kind, squares))


def _say_fallbacks(type: FileFormat, weights: Counter[GGMLQuantizationType]) -> None:
    """Says how many weights have rows that the formats of a mixture do not fit."""
    total = weights.total()
    other = sum(n for kind, n in weights.items() if gguf.GGML_QUANT_SIZES[kind][0] <= BLOCK)
    if type in MIXTURES and other > total / 100:
        say(
            f"{other / total:.0%} of the weights have formats of more bits than those of {type},"
            " which need rows of 256, 512, 768, … weights."
        )


def _describe(writer: gguf.GGUFWriter, model: Pruned, reader: Architecture) -> None:
    """Writes the model's shape as metadata."""
    config: Any = model.lm.model.config
    written = list(zip(model.couplings, reader.shapes(model), strict=True))
    attention = [shape for coupling, shape in written if coupling.kind == "attention"]
    channels = [atoms for coupling, (atoms, _) in written if coupling.kind == "mlp"]
    groups = [count for count, _ in attention]
    heads = [count * queries for count, queries in attention]

    writer.add_type("model")
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(heads if reader.uneven else heads[0])
    writer.add_head_count_kv(groups if reader.uneven else groups[0])
    writer.add_feed_forward_length(channels if reader.uneven else channels[0])
    writer.add_key_length(model.head)
    writer.add_value_length(model.head)
    writer.add_rope_dimension_count(model.head)
    writer.add_rope_freq_base(rope_of(config)["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    _describe_window(writer, config, reader)


def _describe_window(writer: gguf.GGUFWriter, config: Any, reader: Architecture) -> None:
    """Writes the longest context, and which layers of Gemma 3 see only a window of it."""
    window = getattr(config, "sliding_window", None) or config.max_position_embeddings
    if reader.number is not gguf.MODEL_ARCH.GEMMA3:
        # No other architecture here has windows. Within one, full attention gives the same result.
        writer.add_context_length(min(config.max_position_embeddings, window))
        return
    writer.add_context_length(config.max_position_embeddings)
    writer.add_sliding_window(window)
    writer.add_sliding_window_pattern([kind == "sliding_attention" for kind in config.layer_types])
    writer.add_float32(
        f"{reader.name}.rope.freq_base_swa", rope_of(config, "sliding_attention")["rope_theta"]
    )
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
