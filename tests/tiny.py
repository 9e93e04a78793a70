"""A four-layer Llama with random weights, and what is needed to prune it, for fast tests."""

from dataclasses import dataclass
from functools import cached_property

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import Tensor

from ppf.conf import read_option
from ppf.llm import LanguageModel, load
from ppf.pruning import Bank, Compensation, LivePruner, SiteFeatures, Statistics, sensitivity
from ppf.pruning.compensation import LeastSquares
from ppf.pruning.order import Order
from ppf.space import Space, uniform
from tests.observing import collect_statistics, collect_traits


@dataclass(frozen=True)
class Uniform:
    """Uniform policies, which need no search."""

    space: Space

    def policy(self, ratio: float) -> list[int]:
        return uniform(self.space, torch.tensor([ratio], dtype=torch.double))[0].tolist()

    def predicted(self, ratio: float) -> tuple[float, float] | None:
        return None


@dataclass
class TinySetup:
    """A loaded tiny model. Each call of `pruner()` first undoes the last pruner's changes."""

    lm: LanguageModel
    space: Space
    statistics: Statistics
    orders: list[Order]
    windows: Tensor
    last: LivePruner | None = None

    @cached_property
    def features(self) -> SiteFeatures:
        traits, pruner = collect_traits(self.lm, self.windows), self.pruner()
        errors, losses = pruner.bank.errors, sensitivity(pruner, self.windows, seed=0)
        energy = torch.stack([traits.energy[site.name] for site in self.space.sites])
        return SiteFeatures(self.space, errors, 1 - errors, energy, losses, traits)

    def pruner(self, compensation: Compensation | None = None) -> LivePruner:
        if self.last is not None:
            self.last.restore()
        bank = Bank.build(
            self.lm,
            self.space,
            self.orders,
            self.statistics,
            compensation or LeastSquares(0.01, 0.01),
        )
        self.last = LivePruner(self.lm, self.space, bank)
        return self.last


def tiny_setup(cache: str, space: str = "width") -> TinySetup:
    """A setup with random windows, a random order, and units of a KV group or 16 channels."""
    generator = torch.Generator().manual_seed(0)
    lm = load(read_option("model", "tiny"), cache)
    config = OmegaConf.merge(
        read_option("space", space), {"channel_multiple": 16, "query_heads": False}
    )
    windows = torch.randint(0, 257, (8, 32), generator=generator)
    orders = [Order(torch.randperm(c.atoms, generator=generator)) for c in lm.couplings]
    return TinySetup(
        lm,
        instantiate(config, [coupling.prunable for coupling in lm.couplings]),
        collect_statistics(lm, windows),
        orders,
        windows,
    )
