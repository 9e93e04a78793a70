"""Importance: which atoms (KV groups, FFN channels) of a site matter most."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppf.llm import Coupling, LanguageModel
from ppf.pruning.statistics import Statistics, by_atom


class Importance(ABC):
    """Scores the atoms of one coupling; higher stays longer."""

    @abstractmethod
    def scores(
        self,
        coupling: Coupling,
        gram: Float[Tensor, "columns columns"],
        mean: Float[Tensor, " columns"],
    ) -> Float[Tensor, " atoms"]: ...


class Magnitude(Importance):
    """Squared norm of all weights that go with an atom."""

    def scores(self, coupling: Coupling, gram: Tensor, mean: Tensor) -> Tensor:
        total = by_atom(coupling, coupling.consumer.weight.float().square().sum(0))
        for producer in coupling.producers:
            rows = producer.linear.weight.float().square().sum(1)
            total = total + rows.view(coupling.atoms, producer.rows).sum(1)
        return total


class Wanda(Importance):
    """Squared weight times squared activation norm, summed over an atom's columns of the consumer.

    Source: Wanda-sp as defined in FLAP (arXiv 2312.11983), on Wanda's metric (arXiv 2306.11695).
    """

    def scores(self, coupling: Coupling, gram: Tensor, mean: Tensor) -> Tensor:
        weight = coupling.consumer.weight.float().square().sum(0)
        return by_atom(coupling, weight * gram.diagonal().to(weight.device))


class Fluctuation(Importance):
    """Variance of the input times the squared norm of its column.

    Source: FLAP (arXiv 2312.11983), the WIFV metric.
    """

    def scores(self, coupling: Coupling, gram: Tensor, mean: Tensor) -> Tensor:
        weight = coupling.consumer.weight.float().square().sum(0)
        variance = gram.diagonal() - mean.square()
        return by_atom(coupling, weight * variance.to(weight.device))


class Random(Importance):
    """A random order, the floor of every comparison."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def scores(self, coupling: Coupling, gram: Tensor, mean: Tensor) -> Tensor:
        place = 2 * coupling.layer + (coupling.kind == "mlp")
        generator = torch.Generator().manual_seed(self.seed * 100_003 + place)
        return torch.rand(coupling.atoms, generator=generator)


def order_atoms(
    lm: LanguageModel, importance: Importance, statistics: Statistics
) -> list[Int[Tensor, " _"]]:
    """Per coupling, its atoms from most to least important."""
    return [
        importance.scores(coupling, gram, mean).argsort(descending=True, stable=True).cpu()
        for coupling, gram, mean in zip(lm.couplings, statistics.gram, statistics.mean, strict=True)
    ]
