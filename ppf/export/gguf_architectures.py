"""Which models llama.cpp's architectures support: see docs/llama-cpp.md."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gguf
from gguf import MODEL_ARCH

from ppf.errors import PPFError
from ppf.export.pruned import Pruned, Shape
from ppf.llm import Coupling
from ppf.pruning.rounding import BLOCK

_REMEDY = "give export=huggingface"


@dataclass(frozen=True)
class Architecture:
    """An architecture of llama.cpp, and what its code supports.

    Args:
        number: in the package gguf.
        uneven: whether layers may differ in width.
        biases: whether projections may have biases.
        gaps: whether a layer may lack its attention.
        fused: whether query, key and value projections are one matrix.
        interleaved: whether rotary embeddings rotate neighbouring rows, not the halves of a head.
        norm_shift: what is added to the weights of norms.
        ropes: types of position encoding.
        activation: of the FFN.
    """

    number: MODEL_ARCH
    uneven: bool = True
    biases: bool = False
    gaps: bool = False
    fused: bool = False
    interleaved: bool = False
    norm_shift: float = 0.0
    ropes: tuple[str, ...] = ("default",)
    activation: str = "silu"

    @property
    def name(self) -> str:
        return gguf.MODEL_ARCH_NAMES[self.number]

    def shapes(self, model: Pruned) -> list[Shape]:
        """What to write for each coupling: what is kept, and zeros where needed.

        A removed FFN becomes atoms of zeros, and so does a removed attention block, unless the
        architecture allows gaps. If all layers need one width, narrower ones are padded to it.
        """
        pairs = list(zip(model.couplings, model.shapes, strict=True))
        if self.uneven:
            return [(atoms or self._stand_in(c), queries) for c, (atoms, queries) in pairs]
        widest = {"attention": (1, 1), "mlp": (BLOCK, 1)}
        for c, (atoms, queries) in pairs:
            if atoms:
                most, each = widest[c.kind]
                widest[c.kind] = max(atoms, most), max(queries, each)
        return [widest[coupling.kind] for coupling in model.couplings]

    def _stand_in(self, coupling: Coupling) -> int:
        if coupling.kind == "mlp":
            return BLOCK
        needed = not self.gaps or coupling.layer == 0 or coupling.consumer.bias is not None
        return int(needed)


# deci assumes heads of size zero if the first layer has no attention, and drops the attention of a
# layer without an FFN.
_DECI = Architecture(
    MODEL_ARCH.DECI, biases=True, gaps=True, interleaved=True, ropes=("default", "linear", "llama3")
)
# openelm computes what Qwen 3 does, and takes the output matrix from the embedding.
_OPENELM = Architecture(MODEL_ARCH.OPENELM, fused=True)
_QWEN3 = Architecture(MODEL_ARCH.QWEN3, uneven=False)
_GEMMA3 = Architecture(
    MODEL_ARCH.GEMMA3, uneven=False, norm_shift=1.0, activation="gelu_pytorch_tanh"
)
# Models of the families' own classes, whose layers are equal.
_LLAMA = Architecture(
    MODEL_ARCH.LLAMA, uneven=False, biases=True, interleaved=True, ropes=_DECI.ropes
)
_QWEN2 = Architecture(MODEL_ARCH.QWEN2, uneven=False, biases=True)
_PLAIN = {"llama": _LLAMA, "mistral": _LLAMA, "qwen2": _QWEN2, "qwen3": _QWEN3}
_READERS = {"llama": _DECI, "mistral": _DECI, "qwen2": _DECI, "gemma3_text": _GEMMA3}


def architecture_of(model: Pruned) -> Architecture:
    """The architecture for a model.

    Raises:
        PPFError: llama.cpp has none that computes this model.
    """
    config: Any = model.lm.model.config
    family, tied = config.model_type, config.tie_word_embeddings
    reader = (_OPENELM if tied else _QWEN3) if family == "qwen3" else _READERS.get(family)
    if reader is None:
        known = ", ".join((*_READERS, "qwen3"))
        raise PPFError(f"export=gguf supports {known}, not {family}: {_REMEDY}.")
    if wrong := next(_unsupported(config, reader), None):
        raise PPFError(f"llama.cpp does not support this model's {wrong}: {_REMEDY}.")
    whole = config.num_attention_heads * model.head == config.hidden_size
    if model.plain and (whole or family != "qwen2"):  # llama.cpp's qwen2 needs as many heads
        reader = _PLAIN.get(family, reader)
    if model.biased and not reader.biases:
        raise PPFError(
            f"llama.cpp supports no biases in {family} models, and this model has biases, from"
            f" its compensation or its own: search with"
            f" compensation=least_squares_without_bias, or {_REMEDY}."
        )
    written = reader.shapes(model)
    if not reader.uneven and written == model.whole and model.shapes != model.whole:
        raise PPFError(
            f"llama.cpp supports only one width for all layers of this {family} model, and some"
            f" layers of this policy keep all units, so the file would not shrink: {_REMEDY}."
        )
    return reader


def rope_of(config: Any, kind: str = "full_attention") -> dict[str, Any]:
    """The parameters of the position encoding, of one kind of layer where kinds differ."""
    return config.rope_parameters.get(kind, config.rope_parameters)


def _unsupported(config: Any, reader: Architecture) -> Iterator[str]:
    """The parts of a config that the architecture cannot compute."""
    rope = rope_of(config)["rope_type"]
    if rope not in reader.ropes:
        yield f"position encoding ({rope})"
    activation = getattr(config, "hidden_act", None) or config.hidden_activation
    if activation != reader.activation:
        yield f"activation ({activation})"
    if reader is _GEMMA3:
        # llama.cpp uses another factor for models of 62 layers (27B).
        if config.query_pre_attn_scalar != config.head_dim or config.num_hidden_layers == 62:
            yield "factor of the attention scores (query_pre_attn_scalar)"
        if getattr(config, "attn_logit_softcapping", None):
            yield "cap of the attention scores (attn_logit_softcapping)"
        if rope_of(config, "sliding_attention")["rope_type"] != "default":
            yield "position encoding of local layers"
