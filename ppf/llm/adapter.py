"""Base class of model families: which rows and columns of which projections are pruned together.

Only the adapters know the names of modules.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ppf.space import Prunable


@dataclass(frozen=True)
class Producer:
    """A projection whose output rows belong to atoms.

    An atom is the smallest part that can be removed: a KV group, an FFN channel or an expert.

    Args:
        linear: the projection.
        rows: number of consecutive rows that belong to one atom.
        by_query: whether these rows are those of the group's query heads, one head after another.
    """

    linear: nn.Linear
    rows: int
    by_query: bool = False


@dataclass(frozen=True)
class Coupling:
    """The projections of one prunable block of a loaded model.

    Removing an atom removes its rows from every producer and its columns from the consumer. The
    model computes the same function after its atoms are permuted, if all these projections are
    permuted alike.

    Args:
        layer: index of the decoder layer.
        kind: "attention" (an atom is a KV group), "mlp" (an atom is a channel), or "experts".
        atoms: number of atoms.
        producers: projections that compute the atoms.
        consumer: projection that reads the atoms and makes the block's output.
        columns: number of consecutive columns of the consumer that belong to one atom.
        parent: the decoder layer.
        attribute: name of the block in `parent`, as in "mlp" or "mlp.experts". If the block has no
            atoms left, an `EmptyBlock` replaces it.
        bypassed: names of modules in `parent` that serve only this block but are not part of it.
            If the block has no atoms left, identities replace them.
        heads: name of the block's attribute that counts its atoms; None if the family's code has
            none.
        queries: query heads of a KV group, each with an equal part of the consumer's columns.
        ratio: name of the block's attribute that counts `queries`; None if there is none.
        equal: numbers of atoms that the family's own class can have in all layers; empty: any.
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
    queries: int = 1
    ratio: str | None = None
    equal: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The name of the block's site, as in "3.mlp"."""
        return f"{self.layer}.{self.kind}"

    @property
    def block(self) -> Any:
        """The block's module, or what replaces it now."""
        return self.parent.get_submodule(self.attribute)

    @property
    def linears(self) -> list[nn.Linear]:
        """All projections: the producers, then the consumer."""
        return [*(producer.linear for producer in self.producers), self.consumer]

    @property
    def prunable(self) -> Prunable:
        """The description of this block for a space."""

        def params(producers: Iterable[Producer]) -> int:
            return sum(
                p.rows * (p.linear.in_features + (p.linear.bias is not None)) for p in producers
            )

        whole = params(self.producers) + self.columns * self.consumer.out_features
        shared = params(p for p in self.producers if not p.by_query) if self.queries > 1 else 0
        return Prunable(
            self.layer, self.kind, self.atoms, whole, self.queries, shared, equal=self.equal
        )

    def by_query(self) -> "Coupling":
        """The same block with query heads as its atoms, and only the projections that have them."""
        n = self.queries
        producers = [replace(p, rows=p.rows // n) for p in self.producers if p.by_query or n == 1]
        atoms, columns = self.atoms * n, self.columns // n
        return replace(
            self, atoms=atoms, producers=tuple(producers), columns=columns, queries=1, ratio=None
        )


class Adapter(ABC):
    """Finds the prunable projections of a model family.

    To add a family:

    1. Subclass this in a module of `ppf.llm` and implement the abstract methods.
    2. Set `model_types` to the values of `config.model_type` that the class serves.
    3. Add the class to `ppf.llm.families.ADAPTERS`.
    4. Add a small config of the family to `tests/checkpoints.py`. `tests/llm/test_adapters.py`
       then checks that masked, live-pruned and exported models give the same logits.

    The family's modelling file answers these questions:

    - Which rows of which projections belong to one KV group (`Producer.rows`)?
    - Which projections compute the channels of the FFN, and which one reads them?
    - Which config keys hold the widths (`kv_heads` and `channels`)?
    - Which attribute, if any, counts the heads (`Coupling.heads`)?
    - With grouped attention: which rows are those of query heads (`Producer.by_query`), and which
      attribute counts the query heads of a group (`Coupling.ratio`)?
    - Does a norm or a factor follow a consumer (`adds_to_stream` and `norm_behind`)?

    Norms over a single head need no entry. Attention with norms over all heads, as in OLMo 2,
    cannot be pruned.

    Attributes:
        model_types: values of `config.model_type` that this adapter serves.
        kv_heads: config key of the number of key/value heads.
        channels: config key of the number of FFN channels.
        experts: config key of the number of experts.
    """

    model_types: ClassVar[tuple[str, ...]]
    kv_heads: ClassVar[str] = "num_key_value_heads"
    channels: ClassVar[str] = "intermediate_size"
    experts: ClassVar[str] = "num_local_experts"

    @abstractmethod
    def attention(self, index: int, layer: Any) -> Coupling:
        """The attention block of decoder layer number `index`; its atoms are KV groups."""

    @abstractmethod
    def mlp(self, index: int, layer: Any) -> Coupling:
        """The FFN of decoder layer number `index`; its atoms are channels, or experts."""

    @abstractmethod
    def final_norm(self, model: Any) -> nn.Module:
        """The module between the last decoder layer and the language-model head."""

    def layers(self, model: PreTrainedModel) -> nn.ModuleList:
        """The decoder layers, in order."""
        return model.get_decoder().layers

    def couplings(self, model: PreTrainedModel) -> list[Coupling]:
        """The prunable blocks in the order of the layers; in each, attention before the FFN.

        `with_projections` is called first.
        """
        self.with_projections(model)
        return [
            coupling
            for index, layer in enumerate(self.layers(model))
            for coupling in (self.attention(index, layer), self.mlp(index, layer))
        ]

    def with_projections(self, model: PreTrainedModel) -> None:  # noqa: B027
        """Replaces blocks whose weights are not those of projections, such as experts.

        The model still computes the same function.
        """

    def published(self, model: PreTrainedModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors of a model of the family's own class, as its published checkpoints have them."""
        return tensors

    def widths(self, kind: str, atoms: int, queries: int) -> dict[str, int]:
        """The config keys and their values for a block that keeps `atoms` atoms.

        Args:
            queries: query heads of each atom of an attention block.
        """
        if kind == "mlp":
            return {self.channels: atoms}
        if kind == "experts":
            return {self.experts: atoms}
        return {self.kv_heads: atoms, "num_attention_heads": queries * atoms}

    def keep_layers(self, config: Any, stay: Sequence[int]) -> None:
        """Makes a config that of the model with some of its layers, in their order."""
        config.num_hidden_layers = len(stay)
        if getattr(config, "layer_types", None):
            config.layer_types = [config.layer_types[layer] for layer in stay]

    def adds_to_stream(self, config: PreTrainedConfig) -> bool:
        """Whether the consumers' outputs are added to the residual stream as they are.

        False if a norm or a factor lies between; then there is no sequential re-estimation.
        """
        return True

    def norm_behind(self, coupling: Coupling) -> nn.Module | None:
        """The norm that a consumer's output passes before it is added to the residual stream."""
        return None
