"""Samplers: where labelled policies come from."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppf.errors import PPFError
from ppf.pruning import Allocation, SiteFeatures
from ppf.records import read
from ppf.records.policy import PolicyRecord
from ppf.space import Space, project


@runtime_checkable
class SamplingContext(Protocol):
    """What samplers draw on; the features are computed when a sampler reads them."""

    @property
    def space(self) -> Space: ...

    @property
    def features(self) -> SiteFeatures: ...


@runtime_checkable
class RatioAgent(Protocol):
    """Answers for any pruning ratio with the units kept at each site."""

    def policy(self, ratio: float) -> list[int]: ...


class Sampler(ABC):
    """Draws policies; the same generator state gives the same draw."""

    @abstractmethod
    def draw(
        self, context: SamplingContext, count: int, generator: torch.Generator, turn: int = 0
    ) -> Int[Tensor, "count sites"]:
        """Draws `count` policies.

        Args:
            turn: how many draws of this size came before; who goes through a list goes on with it.
        """


class Profiles(Sampler):
    """Random profiles around uniform, stratified over the ratio.

    The share kept at a site is (1 − ratio)(1 + spread · noise), with noise of unit size that is
    drawn per site (rough) or as a smooth curve over depth for each kind; attention is protected
    by a random amount between the uniform share and all.

    Args:
        ratio: [lowest, highest].
        spread: [smallest, largest] relative deviation of a site from its kind's share.
        smooth: share of the noise's variance that is smooth over depth.
    """

    def __init__(self, ratio: list[float], spread: list[float], smooth: float) -> None:
        self.ratio, self.spread, self.smooth = ratio, spread, smooth

    def draw(
        self, context: SamplingContext, count: int, generator: torch.Generator, turn: int = 0
    ) -> Tensor:
        def rand(*size: int) -> Tensor:
            return torch.rand(*size, generator=generator)

        space, ratio = context.space, _stratified(self.ratio, count, generator)
        spread = self.spread[0] + (self.spread[1] - self.spread[0]) * rand(count, 1)
        rough = torch.randn(count, len(space), generator=generator)
        noise = (
            self.smooth**0.5 * _smooth(space, count, generator) + (1 - self.smooth) ** 0.5 * rough
        )
        share = (1 - ratio)[:, None] * (1 + spread * noise)
        attention = torch.tensor([site.kind == "attention" for site in space.sites])
        protected = share + rand(count, 1) * ratio[:, None]
        share = torch.where(attention, protected, share)
        return project(space, share * space.units, ratio)


class Sensitivities(Sampler):
    """One site narrowed at a time, the rest dense.

    Sites come in turn, in a shuffled order. In the first two passes each is once emptied and once
    cut to a random depth; further cuts are of random depth.
    """

    def draw(
        self, context: SamplingContext, count: int, generator: torch.Generator, turn: int = 0
    ) -> Tensor:
        space = context.space
        kept = space.dense.repeat(count, 1)
        order = torch.randperm(len(space), generator=torch.Generator().manual_seed(0))
        number = turn * count + torch.arange(count)
        place, passed = number % len(space), number // len(space)
        sites = order[place]
        cut = (torch.rand(count, generator=generator) * space.units[sites]).long()
        emptied = (passed < 2) & ((place + passed) % 2 == 0)
        kept[torch.arange(count), sites] = torch.where(emptied, 0, cut)
        return kept


class Allocated(Sampler):
    """The policies of allocation rules, in turn, stratified over the ratio.

    Args:
        rules: name → rule.
        ratio: [lowest, highest].
    """

    def __init__(self, rules: Mapping[str, Allocation], ratio: list[float]) -> None:
        self.rules, self.ratio = list(rules.values()), ratio

    def draw(
        self, context: SamplingContext, count: int, generator: torch.Generator, turn: int = 0
    ) -> Tensor:
        ratio = _stratified(self.ratio, count, generator)
        first = turn * count % len(self.rules)
        wanted = torch.empty(count, len(context.space), dtype=ratio.dtype)
        for number, rule in enumerate(self.rules[first:] + self.rules[:first]):
            rows = slice(number, count, len(self.rules))
            if number < count:
                wanted[rows] = rule.wanted(context.features, ratio[rows])
        return project(context.space, wanted, ratio)


class FromFiles(Sampler):
    """Policies found before, in turn.

    Args:
        paths: policy.json files of searches of the same space.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        if not paths:
            raise PPFError("the sampler has no policies: give sampler.of.paths=[POLICY.json,...].")
        remedy = "give sampler.of.paths=[POLICY.json,...] that search.py wrote"
        self.policies = [read(path, PolicyRecord, remedy)["kept"] for path in paths]

    def draw(
        self, context: SamplingContext, count: int, generator: torch.Generator, turn: int = 0
    ) -> Tensor:
        policies = torch.tensor([context.space.policy(kept) for kept in self.policies])
        return policies[(turn * count + torch.arange(count)) % len(policies)]


class Proposals(Sampler):
    """The answers of a trained agent, stratified over the ratio.

    Args:
        ratio: [lowest, highest].
    """

    def __init__(self, agent: RatioAgent, ratio: list[float]) -> None:
        self.agent, self.ratio = agent, ratio

    def draw(
        self, context: SamplingContext, count: int, generator: torch.Generator, turn: int = 0
    ) -> Tensor:
        ratios = _stratified(self.ratio, count, generator).tolist()
        return torch.tensor([self.agent.policy(ratio) for ratio in ratios])


class Neighbours(Sampler):
    """Policies of another sampler, shaken at the same pruning ratio.

    Args:
        of: draws the policies.
        spread: standard deviation of a site's shake, as a share of its units; one unit at least.
    """

    def __init__(self, of: Sampler, spread: float) -> None:
        self.of, self.spread = of, spread

    def draw(
        self, context: SamplingContext, count: int, generator: torch.Generator, turn: int = 0
    ) -> Tensor:
        kept = self.of.draw(context, count, generator, turn)
        reach = (self.spread * context.space.units).clamp_min(1)
        shaken = kept + reach * torch.randn(kept.shape, generator=generator)
        return project(context.space, shaken, context.space.ratio(kept))


class SharedPrefix(Sampler):
    """Families of policies that share their first layers, which the labeller then runs only once.

    A sampler's policies are sorted by ratio and dealt to families. Each member takes its family's
    first policy up to a depth of its own, and its own policy beyond.

    Args:
        of: draws the policies.
        depths: per member after the first, the share of the layers that it shares.
    """

    def __init__(self, of: Sampler, depths: Sequence[float]) -> None:
        self.of, self.depths = of, [0.0, *depths]

    def draw(
        self, context: SamplingContext, count: int, generator: torch.Generator, turn: int = 0
    ) -> Tensor:
        space, kept = context.space, self.of.draw(context, count, generator, turn)
        kept = kept[space.ratio(kept).argsort(stable=True)]
        rows, members = torch.arange(count), len(self.depths)
        depth = torch.tensor(self.depths)[rows % members] * space.layers
        layers = torch.tensor([site.layer for site in space.sites])
        return torch.where(layers < depth[:, None], kept[rows - rows % members], kept)


class Mixture(Sampler):
    """Several samplers, each drawing its share.

    Args:
        parts: name → sampler.
        shares: name → its part of the draw; they need not sum to one.
    """

    def __init__(self, parts: Mapping[str, Sampler], shares: Mapping[str, float]) -> None:
        self.parts, self.shares = parts, shares

    def draw(
        self, context: SamplingContext, count: int, generator: torch.Generator, turn: int = 0
    ) -> Tensor:
        whole, drawn, reached = sum(self.shares.values()), [], 0.0
        for name, sampler in self.parts.items():
            start, reached = round(reached * count), reached + self.shares[name] / whole
            part = round(reached * count) - start
            drawn.append(sampler.draw(context, part, generator, turn))
        return torch.cat(drawn)[torch.randperm(count, generator=generator)]


def _stratified(
    ratio: list[float], count: int, generator: torch.Generator
) -> Float[Tensor, " count"]:
    """One ratio in each of `count` equal parts of [lowest, highest], in random order."""
    low, high = ratio
    places = torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)
    return (low + (high - low) * places / max(count, 1)).double()


def _smooth(space: Space, count: int, generator: torch.Generator) -> Float[Tensor, "count sites"]:
    """Random low-frequency curves over depth, one for each kind, of unit variance."""
    frequencies = torch.arange(1, 5)
    depth = torch.tensor([site.layer / max(space.layers - 1, 1) for site in space.sites])
    basis = torch.cos(torch.pi * frequencies[:, None] * depth)
    noise = torch.zeros(count, len(space))
    for kind in space.kinds:
        here = torch.tensor([site.kind == kind for site in space.sites])
        noise += here * (torch.randn(count, len(frequencies), generator=generator) @ basis)
    return noise / len(frequencies) ** 0.5 * 2**0.5
