"""Samplers: they draw the policies that are labelled."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppf.pruning import Allocation, SiteFeatures
from ppf.ranges import Interval, NonNegative, RatioInterval, Share
from ppf.space import Space, project


@runtime_checkable
class SampledSites(Protocol):
    """What samplers may read. Features are computed when they are first read."""

    @property
    def space(self) -> Space: ...

    @property
    def features(self) -> SiteFeatures: ...


# For each policy of a group, the share of the layers that it copies from the first one. All others
# copy at least `groups.SHARED`, so that folds and bootstrap samples recognise groups.
_DEPTHS = (0.0, 0.25, 0.5, 0.75)


class Sampler(ABC):
    """Draws policies; the same generator state gives the same draw.

    Samplers are no dataclasses, since Hydra would take the parts of a `Mixture` for configs.
    """

    @abstractmethod
    def draw(
        self, sampled: SampledSites, count: int, generator: torch.Generator, turn: int = 0
    ) -> Int[Tensor, "count sites"]:
        """Draws `count` policies.

        Args:
            sampled: the space and its features.
            count: number of policies.
            generator: source of randomness.
            turn: number of earlier draws of this size. Samplers that go through a list (rules,
                sites) continue after these.
        """


class Profiles(Sampler):
    """Random deviations from uniform pruning, stratified over the ratio.

    The kept share of a site is (1 − ratio)(1 + spread · noise). The noise has unit variance. It is
    the sum of independent noise per site and of a smooth curve over depth for each kind. A random
    share of `ratio` is then added to the kept share of all attention sites.

    Args:
        ratio: [lowest, highest] pruning ratio.
        spread: [smallest, largest] standard deviation of a site, relative to the uniform share.
        smooth: share of the noise's variance that is smooth over depth.
    """

    def __init__(self, ratio: RatioInterval, spread: Interval, smooth: Share) -> None:
        self.ratio, self.spread, self.smooth = ratio, spread, smooth

    def draw(
        self, sampled: SampledSites, count: int, generator: torch.Generator, turn: int = 0
    ) -> Tensor:
        def rand(*size: int) -> Tensor:
            return torch.rand(*size, generator=generator)

        space, ratio = sampled.space, _stratified(self.ratio, count, generator)
        spread = self.spread[0] + (self.spread[1] - self.spread[0]) * rand(count, 1)
        rough = torch.randn(count, len(space), generator=generator)
        noise = (
            self.smooth**0.5 * _smooth(space, count, generator) + (1 - self.smooth) ** 0.5 * rough
        )
        share = (1 - ratio)[:, None] * (1 + spread * noise)
        protected = share + rand(count, 1) * ratio[:, None]
        share = torch.where(space.of_kind("attention"), protected, share)
        return project(space, space.widths(share), ratio)


class SingleSite(Sampler):
    """Policies that prune a single site and keep all other sites dense.

    Sites take turns in a shuffled order. In the first two passes over the sites, each site is once
    emptied and once given a random width. Later widths are random.
    """

    def draw(
        self, sampled: SampledSites, count: int, generator: torch.Generator, turn: int = 0
    ) -> Tensor:
        space = sampled.space
        kept = space.dense.repeat(count, 1)
        order = torch.randperm(len(space), generator=torch.Generator().manual_seed(0))
        number = turn * count + torch.arange(count)
        position, passed = number % len(space), number // len(space)
        sites = order[position]
        cut = (torch.rand(count, generator=generator) * space.units[sites]).long()
        emptied = (passed < 2) & ((position + passed) % 2 == 0)
        kept[torch.arange(count), sites] = torch.where(emptied, 0, cut)
        return kept


class FromRules(Sampler):
    """The policies of allocation rules, which take turns; stratified over the ratio.

    Args:
        rules: allocation rules by name.
        ratio: [lowest, highest] pruning ratio.
    """

    def __init__(self, rules: Mapping[str, Allocation], ratio: RatioInterval) -> None:
        self.rules, self.ratio = list(rules.values()), ratio

    def draw(
        self, sampled: SampledSites, count: int, generator: torch.Generator, turn: int = 0
    ) -> Tensor:
        ratio = _stratified(self.ratio, count, generator)
        first = turn * count % len(self.rules)
        kept = sampled.space.dense.repeat(count, 1)
        for number, rule in enumerate(self.rules[first:] + self.rules[:first]):
            rows = slice(number, count, len(self.rules))
            if number < count:
                kept[rows] = rule.policies(sampled.features, ratio[rows])
        return kept


class SharedPrefix(Sampler):
    """Groups of policies that share their first layers, so the labeller runs these only once.

    The policies of another sampler are sorted by ratio and divided into groups of neighbours. In
    each group, a random member gives the widths of its first layers to the others, which keep those
    of their other layers. No projection follows, since it would make the other layers offset the
    copied ones.

    Args:
        of: the other sampler.
    """

    def __init__(self, of: Sampler) -> None:
        self.of = of

    def draw(
        self, sampled: SampledSites, count: int, generator: torch.Generator, turn: int = 0
    ) -> Tensor:
        space, kept = sampled.space, self.of.draw(sampled, count, generator, turn)
        rows, members = torch.arange(count), len(_DEPTHS)
        shuffled = (rows // members + torch.rand(count, generator=generator)).argsort()
        kept = kept[space.ratio(kept).argsort(stable=True)][shuffled]
        depth = torch.tensor(_DEPTHS)[rows % members] * space.layers
        return torch.where(space.layer < depth[:, None], kept[rows - rows % members], kept)


class Mixture(Sampler):
    """Draws from several samplers.

    Args:
        parts: the samplers by name.
        shares: weight of each sampler by name; its share of the policies is its weight divided by
            the sum of all weights.
    """

    def __init__(self, parts: Mapping[str, Sampler], shares: Mapping[str, NonNegative]) -> None:
        whole = sum(shares.values())
        self.parts = [(sampler, shares[name] / whole) for name, sampler in parts.items()]

    def draw(
        self, sampled: SampledSites, count: int, generator: torch.Generator, turn: int = 0
    ) -> Tensor:
        drawn, reached = [], 0.0
        for sampler, share in self.parts:
            start, reached = round(reached * count), reached + share
            part = round(reached * count) - start
            drawn.append(sampler.draw(sampled, part, generator, turn))
        return torch.cat(drawn)[torch.randperm(count, generator=generator)]


def _stratified(
    ratio: list[float], count: int, generator: torch.Generator
) -> Float[Tensor, " count"]:
    """One random ratio in each of `count` equal parts of [lowest, highest], in random order."""
    low, high = ratio
    strata = torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)
    return (low + (high - low) * strata / max(count, 1)).double()


def _smooth(space: Space, count: int, generator: torch.Generator) -> Float[Tensor, "count sites"]:
    """Random low-frequency curves over depth with unit variance, one for each kind."""
    frequencies = torch.arange(1, 5)
    depth = space.layer / max(space.layers - 1, 1)
    basis = torch.cos(torch.pi * frequencies[:, None] * depth)
    noise = torch.zeros(count, len(space))
    for kind in space.kinds:
        noise += space.of_kind(kind) * (
            torch.randn(count, len(frequencies), generator=generator) @ basis
        )
    return noise / len(frequencies) ** 0.5 * 2**0.5
