"""How the projections of a model family couple: the only place that knows module names."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ppf.space import Prunable


@dataclass(frozen=True)
class Producer:
    """A projection whose output rows belong to atoms, `rows` consecutive ones each."""

    linear: nn.Linear
    rows: int


@dataclass(frozen=True)
class Coupling:
    """One prunable place of a loaded model.

    Dropping atom j drops its rows of every producer and its `columns` columns of the consumer.
    Atoms can be reordered (in all of them at once) without changing what the model computes.

    Args:
        kind: "attention" (an atom is a KV group) or "mlp" (an atom is a channel).
        parent: the decoder layer.
        attribute: where in `parent` the block lies whose output the consumer makes. With nothing
            left an `EmptyBlock` stands there.
        bypassed: modules of `parent` that only serve this block but lie outside of it; with nothing
            left they become identities.
        heads: the block's own count of its atoms, where the family's code reads one.
    """

    layer: int
    kind: str
    atoms: int
    producers: tuple[Producer, ...]
    consumer: nn.Linear
    columns: int
    parent: nn.Module
    attribute: str
    bypassed: tuple[str, ...] = ()
    heads: str | None = None

    @property
    def prunable(self) -> Prunable:
        rows = sum(
            p.rows * (p.linear.in_features + (p.linear.bias is not None)) for p in self.producers
        )
        return Prunable(
            self.layer, self.kind, self.atoms, rows + self.columns * self.consumer.out_features
        )


class Adapter(ABC):
    """Tells where a family's prunable projections lie.

    To add a family: subclass this in a module of `ppf.llm`, set `model_types` to the
    `config.model_type` values that it serves, implement the abstract methods, and name the class in
    `ppf.llm.families.ADAPTERS`. Read the family's modelling file for three things: which rows of
    which projections belong to one KV group (`Producer.rows`), what counts heads outside of the
    projections' shapes (`Coupling.heads`), and what the config calls its widths (below). Norms over
    a single head need nothing. Give `tests/checkpoints.py` a config of its form:
    `tests/llm/test_adapters.py` then checks that masked, live-pruned and exported logits agree.

    Attributes:
        kv_heads: what the family's config calls the number of key/value heads.
        channels: what it calls the number of FFN channels.
    """

    model_types: ClassVar[tuple[str, ...]]
    kv_heads: ClassVar[str] = "num_key_value_heads"
    channels: ClassVar[str] = "intermediate_size"

    @abstractmethod
    def attention(self, index: int, layer: Any) -> Coupling:
        """The attention of one decoder layer; its atoms are KV groups."""

    @abstractmethod
    def mlp(self, index: int, layer: Any) -> Coupling:
        """The FFN of one decoder layer; its atoms are channels."""

    @abstractmethod
    def final_norm(self, model: Any) -> nn.Module:
        """What stands between the last layer and the language-model head."""

    def layers(self, model: PreTrainedModel) -> nn.ModuleList:
        """The decoder layers, in order."""
        return model.get_decoder().layers

    def couplings(self, model: PreTrainedModel) -> list[Coupling]:
        """The prunable places, attention before mlp in every layer."""
        return [
            coupling
            for index, layer in enumerate(self.layers(model))
            for coupling in (self.attention(index, layer), self.mlp(index, layer))
        ]

    def widths(self, config: PreTrainedConfig, kind: str, atoms: int) -> dict[str, int]:
        """How the family's config says that a block has `atoms` left."""
        if kind == "mlp":
            return {self.channels: atoms}
        queries = config.num_attention_heads // getattr(config, self.kv_heads)
        return {self.kv_heads: atoms, "num_attention_heads": queries * atoms}

    def adds_to_stream(self, config: PreTrainedConfig) -> bool:
        """Whether what consumers give goes into the residual stream as it is, without a norm."""
        return True

    def prunables(self, model: PreTrainedModel) -> list[Prunable]:
        return [coupling.prunable for coupling in self.couplings(model)]
