"""A pruned model in the form that all export formats read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AutoModelForCausalLM, PreTrainedModel

from ppf.llm import Coupling, LanguageModel, Producer
from ppf.pruning import LivePruner

Shape = tuple[int, int]
"""Number of atoms of a block, and of query heads in each KV group (1 in FFNs)."""
_NORMS = {"attention": "input_layernorm", "mlp": "post_attention_layernorm"}


@dataclass(frozen=True)
class Pruned:
    """A pruned model: live-pruned, or read from an exported folder.

    Args:
        lm: its config has the dense model's widths.
        couplings: the prunable blocks; their projections have the widths of the policy.
        blocks: the original block of each coupling, also where an `EmptyBlock` replaces it.
        shapes: what each coupling keeps.
    """

    lm: LanguageModel
    couplings: list[Coupling]
    blocks: list[nn.Module]
    shapes: list[Shape]

    @classmethod
    def of(cls, pruner: LivePruner) -> "Pruned":
        """The pruner's model at its present policy."""
        return cls(pruner.lm, pruner.lm.couplings, pruner.blocks, pruner.shapes)

    @cached_property
    def dense(self) -> PreTrainedModel:
        """The dense model, without its weights."""
        config = self.lm.model.config
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
            self.lm.adapter.with_projections(model)
        return model

    @cached_property
    def plain(self) -> bool:
        """Whether it is a model of the family's own class, with the widths of its config."""
        own, dense = (
            {name: parameter.shape for name, parameter in model.named_parameters()}
            for model in (self.lm.model, self.dense)
        )
        return own == dense

    @property
    def biased(self) -> bool:
        """Whether any prunable projection has a bias."""
        linears = (linear for coupling in self.couplings for linear in coupling.linears)
        return any(linear.bias is not None for linear in linears)

    @cached_property
    def whole(self) -> list[Shape]:
        """What each coupling has in the dense model."""
        return [(c.atoms, c.queries) for c in self.lm.adapter.couplings(self.dense)]

    @property
    def head(self) -> int:
        """Size of an attention head; some families' configs leave it out."""
        config: Any = self.lm.model.config
        given = getattr(config, "head_dim", None)
        return given or config.hidden_size // config.num_attention_heads

    def tensors(self, shapes: Sequence[Shape]) -> Iterator[tuple[str, Tensor]]:
        """All parameters by their names in transformers, of a family with Llama's names.

        Args:
            shapes: what each block is filled up to, with zeros; without atoms, neither the block
                nor the norm in front of it is wanted.
        """
        written = list(zip(self.couplings, self.blocks, self.shapes, shapes, strict=True))
        places = tuple(f"model.layers.{c.layer}.{c.attribute}." for c, *_ in written)
        unused = {
            f"model.layers.{c.layer}.{_NORMS[c.kind]}.weight" for c, *_, (n, _) in written if not n
        }
        for name, tensor in self.lm.model.named_parameters():
            if not name.startswith(places) and name not in unused:
                yield name, tensor
        for place, block in zip(places, written, strict=True):
            if block[-1][0]:
                yield from ((place + name, part) for name, part in _block(*block))


def whole(lm: LanguageModel) -> Pruned:
    """A model that is not pruned, in the form that exports read."""
    blocks: list[nn.Module] = [c.block for c in lm.couplings]
    return Pruned(lm, lm.couplings, blocks, [(c.atoms, c.queries) for c in lm.couplings])


def _block(
    coupling: Coupling, block: nn.Module, kept: Shape, wanted: Shape
) -> Iterator[tuple[str, Tensor]]:
    """A block's parameters, its projections filled up with zeros."""
    producers: dict[Any, Producer] = {x.linear: x for x in coupling.producers}
    for place, module in block.named_modules():
        for name, tensor in module.named_parameters(recurse=False):
            if producer := producers.get(module):
                if producer.by_query:
                    tensor = _filled(tensor, 0, producer.rows // coupling.queries, kept, wanted)
                else:
                    tensor = _filled(tensor, 0, producer.rows, (kept[0], 1), (wanted[0], 1))
            elif module is coupling.consumer and name == "weight":
                tensor = _filled(tensor, 1, coupling.columns // coupling.queries, kept, wanted)
            yield f"{place}.{name}", tensor


def _filled(tensor: Tensor, dim: int, size: int, kept: Shape, wanted: Shape) -> Tensor:
    """Rows (dim 0) or columns (dim 1), `size` for each query head, filled up with zeros."""
    parts = tensor.unflatten(dim, (*kept, size))
    groups, queries = (new - old for new, old in zip(wanted, kept, strict=True))
    behind = (0, 0) * (parts.dim() - dim - 2)
    return pad(parts, (*behind, 0, queries, 0, groups)).flatten(dim, dim + 2)
