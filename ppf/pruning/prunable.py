"""A model that can be pruned to the policies of a space."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel

from ppf.llm import LanguageModel
from ppf.pruning import Compensation, LivePruner
from ppf.pruning.live import Types
from ppf.space import Space


@dataclass(frozen=True)
class PrunableModel:
    """A loaded model, and how the policies of a space are applied to it.

    Args:
        space: the space of the policies.
        pruner: applies numbers of kept units to the model.
        compensation: how the pruner's bank was made.
        parameters: of the dense model; tied weights count once.
    """

    space: Space
    pruner: LivePruner
    compensation: Compensation
    parameters: int

    @property
    def lm(self) -> LanguageModel:
        """The model, whose weights are in order of importance."""
        return self.pruner.lm

    def decode(self, kept: Sequence[int]) -> tuple[Sequence[int], Types]:
        """A policy of `space` as the pruner takes it: kept units, and number formats."""
        return kept, None

    def units(self, kept: Int[Tensor, "n sites"]) -> Int[Tensor, "n sites"]:
        """The units that policies of `space` keep."""
        return torch.tensor([self.decode(row)[0] for row in kept.tolist()])

    def apply_by_layer(self, kept: Sequence[int]) -> Iterator[int]:
        """Applies a policy of `space` one layer at a time; see `LivePruner.apply_by_layer`."""
        return self.pruner.apply_by_layer(*self.decode(kept))

    def at(self, kept: Sequence[int]) -> AbstractContextManager[PreTrainedModel]:
        """The model under a policy of `space`."""
        return self.pruner.at(*self.decode(kept))
