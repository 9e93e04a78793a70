"""A pruned model in the form that all export formats read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from ppf.llm import Coupling, LanguageModel
from ppf.pruning import LivePruner

_NORMS = {"attention": "input_layernorm", "mlp": "post_attention_layernorm"}


@dataclass(frozen=True)
class Pruned:
    """A pruned model: live-pruned, or read from an exported folder.

    Args:
        lm: its config has the dense model's widths.
        couplings: the prunable blocks; their projections have the widths of the policy.
        blocks: the original block of each coupling, also where an `EmptyBlock` replaces it.
        atoms: number of atoms that each coupling keeps.
    """

    lm: LanguageModel
    couplings: list[Coupling]
    blocks: list[nn.Module]
    atoms: list[int]

    @classmethod
    def of(cls, pruner: LivePruner) -> "Pruned":
        """The pruner's model at its present policy."""
        return cls(pruner.lm, pruner.lm.couplings, pruner.blocks, pruner.atoms)

    @cached_property
    def dense(self) -> PreTrainedModel:
        """The dense model, without its weights."""
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(self.lm.model.config, trust_remote_code=False)

    @property
    def biased(self) -> bool:
        """Whether any prunable projection has a bias."""
        linears = (linear for coupling in self.couplings for linear in coupling.linears)
        return any(linear.bias is not None for linear in linears)

    @property
    def whole(self) -> list[int]:
        """Number of atoms that each coupling has in the dense model."""
        config, adapter = self.lm.model.config, self.lm.adapter
        keys = {"attention": adapter.kv_heads, "mlp": adapter.channels}
        return [getattr(config, keys[coupling.kind]) for coupling in self.couplings]

    @property
    def head(self) -> int:
        """Size of an attention head; some families' configs leave it out."""
        config: Any = self.lm.model.config
        given = getattr(config, "head_dim", None)
        return given or config.hidden_size // config.num_attention_heads

    def tensors(self, atoms: Sequence[int]) -> Iterator[tuple[str, Tensor]]:
        """All parameters by their names in transformers, of a family with Llama's names.

        Args:
            atoms: number of atoms that each block is filled up to, with zeros; 0: neither the block
                nor the norm in front of it is wanted.
        """
        written = list(zip(self.couplings, self.blocks, atoms, strict=True))
        places = tuple(f"model.layers.{c.layer}.{c.attribute}." for c, _, _ in written)
        unused = {f"model.layers.{c.layer}.{_NORMS[c.kind]}.weight" for c, _, n in written if not n}
        for name, tensor in self.lm.model.named_parameters():
            if not name.startswith(places) and name not in unused:
                yield name, tensor
        for place, (coupling, block, count) in zip(places, written, strict=True):
            if count:
                yield from ((place + name, part) for name, part in _block(coupling, block, count))


def _block(coupling: Coupling, block: nn.Module, atoms: int) -> Iterator[tuple[str, Tensor]]:
    """A block's parameters, its projections filled up with zeros to `atoms`."""
    rows: dict[Any, int] = {producer.linear: producer.rows for producer in coupling.producers}
    for place, module in block.named_modules():
        for name, tensor in module.named_parameters(recurse=False):
            if module in rows:
                missing = atoms * rows[module] - len(tensor)
                tensor = torch.cat([tensor, tensor.new_zeros(missing, *tensor.shape[1:])])
            elif module is coupling.consumer and name == "weight":
                missing = atoms * coupling.columns - tensor.shape[1]
                tensor = torch.cat([tensor, tensor.new_zeros(len(tensor), missing)], 1)
            yield f"{place}.{name}", tensor
