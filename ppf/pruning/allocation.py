"""Allocation rules: published answers to how much of each site should stay."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ppf.errors import PPFError
from ppf.pruning.features import SiteFeatures
from ppf.pruning.traits import MULTIPLES, Traits
from ppf.space import Space


class Allocation(ABC):
    """A rule from site features to widths; it does not change the order of the units.

    To add one: subclass this, give it a YAML in `conf/allocation` with all its hyper-parameters,
    and name it in `conf/rules/all.yaml` and in a YAML of `conf/agent`.
    """

    @abstractmethod
    def wanted(
        self, features: SiteFeatures, ratio: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch sites"]:
        """Units to keep, real numbers that `ppf.space.project` rounds to the budget."""


class Uniform(Allocation):
    """The same share of every site."""

    def wanted(self, features: SiteFeatures, ratio: Tensor) -> Tensor:
        return (1 - ratio)[:, None] * features.space.units.to(ratio.device)


class LayerRule(Allocation):
    """A rule that gives every layer a pruning ratio; here all sites of a layer share it."""

    def wanted(self, features: SiteFeatures, ratio: Tensor) -> Tensor:
        space = features.space
        layers = torch.tensor([site.layer for site in space.sites], device=ratio.device)
        removed = self.removed(features, ratio)[:, layers]
        return (1 - removed) * space.units.to(ratio.device)

    @abstractmethod
    def removed(
        self, features: SiteFeatures, ratio: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch layers"]:
        """The share that each layer loses."""


class OWL(LayerRule):
    """Layers with more outliers keep more, within ±λ of the ratio.

    With D the share of a layer's scores |W_ij| ‖X_j‖ above m times their mean:
    removed = ratio − 2λ ((D − min D) / (max D − min D) − mean of that).

    Args:
        m: multiple of the mean above which a score is an outlier, a whole number.
        bound: λ.

    Source: OWL (arXiv 2310.05175), section 3.2, as its code maps D to ratios.
    """

    def __init__(self, m: int, bound: float) -> None:
        if not 0 <= m < MULTIPLES:
            raise PPFError(f"OWL's m={m} is not counted: give 0 ≤ m < {MULTIPLES}.")
        self.m, self.bound = m, bound

    def removed(self, features: SiteFeatures, ratio: Tensor) -> Tensor:
        outliers = _unit_range(_traits(features).outliers[:, self.m].to(ratio))
        return ratio[:, None] - 2 * self.bound * (outliers - outliers.mean())


class AlphaPruning(LayerRule):
    """Layers whose weight spectra have heavier tails (smaller exponents) keep more.

    removed = η ((1 − ε) + 2ε (α − min α) / (max α − min α)), with η such that the ratio is met.

    Args:
        epsilon: ε.

    Source: AlphaPruning (arXiv 2410.10912), eq. 2, on exponents averaged over a block's matrices.
    """

    def __init__(self, epsilon: float) -> None:
        self.epsilon = epsilon

    def removed(self, features: SiteFeatures, ratio: Tensor) -> Tensor:
        exponents = _unit_range(_traits(features).exponents.to(ratio))
        share = 1 - self.epsilon + 2 * self.epsilon * exponents
        return ratio[:, None] * share / (share * _layer_cost(features.space).to(ratio)).sum()


class BlockInfluence(LayerRule):
    """Layers that turn their hidden states more keep more.

    removed = ratio · L · softmax(−influence / ε) over the L layers.

    Args:
        temperature: ε.

    Source: the block influence of ShortGPT (arXiv 2403.03853), which drops whole layers by it; as
        ratios of widths by MoDeGPT (arXiv 2408.09632), section 3.3.
    """

    def __init__(self, temperature: float) -> None:
        self.temperature = temperature

    def removed(self, features: SiteFeatures, ratio: Tensor) -> Tensor:
        influence = _traits(features).influence.to(ratio)
        return ratio[:, None] * len(influence) * (-influence / self.temperature).softmax(0)


class FLAP(Allocation):
    """One threshold on the standardised fluctuation of all atoms, by cost.

    Source: FLAP (arXiv 2312.11983), adaptive structure search (AL-AM) on the WIFV metric; its code
        counts a head as 512 / 3 channels, here each atom counts its parameters.
    """

    def wanted(self, features: SiteFeatures, ratio: Tensor) -> Tensor:
        space, scores = features.space, _traits(features).fluctuation
        per_unit = torch.tensor([site.atoms_per_unit for site in space.sites], device=ratio.device)
        here = [scores[site.name].to(ratio) for site in space.sites]
        cost = space.params.to(ratio) / per_unit
        return (per_unit * space.units.to(ratio) - _cheapest(here, cost, ratio)) / per_unit


class ObsGlobal(Allocation):
    """Greedy removal of the unit whose loss raises the reconstruction error least per parameter.

    Source: the global greedy step of Optimal Brain Compression (arXiv 2208.11580), on the relative
        errors of the level bank, which include the compensation.
    """

    def wanted(self, features: SiteFeatures, ratio: Tensor) -> Tensor:
        space, errors = features.space, features.errors.to(ratio)
        rises = [
            # A unit goes after those before it: greedy waits for the dearest of them.
            -row[: site.units + 1].diff().flip(0).cummin(0).values / site.params
            for site, row in zip(space.sites, errors, strict=True)
        ]
        return space.units.to(ratio) - _cheapest(rises, space.params.to(ratio), ratio)


def _unit_range(values: Float[Tensor, " layers"]) -> Float[Tensor, " layers"]:
    """Stretched linearly to [0, 1]; all zero where there is nothing to tell layers apart."""
    low, high = values.min(), values.max()
    return (values - low) / (high - low).clamp_min(torch.finfo(values.dtype).tiny)


def _layer_cost(space: Space) -> Float[Tensor, " layers"]:
    """Each layer's share of the space's parameters."""
    layers = torch.tensor([site.layer for site in space.sites])
    cost = (space.units * space.params).double() / space.total
    return cost.new_zeros(space.layers).index_add(0, layers, cost)


def _cheapest(
    scores: Sequence[Float[Tensor, " _"]], cost: Float[Tensor, " sites"], ratio: Tensor
) -> Float[Tensor, "batch sites"]:
    """How many items of each site are among the lowest scores that together cost `ratio`."""
    counts = torch.tensor([len(site) for site in scores], device=ratio.device)
    queue = torch.cat(list(scores)).argsort(stable=True)
    gone = cost.double().repeat_interleave(counts)[queue].cumsum(0)
    gone = torch.cat([gone.new_zeros(1), gone])
    lost = torch.searchsorted(gone, ratio.double() * gone[-1] * (1 - _ROUNDING))
    places = queue.argsort().split(counts.tolist())
    return torch.stack([torch.searchsorted(p.sort().values, lost) for p in places], 1).to(ratio)


_ROUNDING = 1e-12


def _traits(features: SiteFeatures) -> Traits:
    assert features.traits is not None, "allocation rules need the traits of the dense model"
    return features.traits
