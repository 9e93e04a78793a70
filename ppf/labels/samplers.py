"""Samplers: where labelled policies come from."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppf.space import Space, project


class Sampler(ABC):
    """Draws policies; the same generator state gives the same draw."""

    @abstractmethod
    def draw(
        self, space: Space, count: int, generator: torch.Generator
    ) -> Int[Tensor, "count sites"]: ...


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

    def draw(self, space: Space, count: int, generator: torch.Generator) -> Tensor:
        def rand(*size: int) -> Tensor:
            return torch.rand(*size, generator=generator)

        low, high = self.ratio
        ratio = (
            low + (high - low) * (torch.randperm(count, generator=generator) + rand(count)) / count
        )
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
    """One site narrowed at a time, the rest dense: sites in turn, depths of the cut at random."""

    def draw(self, space: Space, count: int, generator: torch.Generator) -> Tensor:
        kept = space.dense.repeat(count, 1)
        sites = torch.cat(
            [
                torch.randperm(len(space), generator=generator)
                for _ in range(count // len(space) + 1)
            ]
        )[:count]
        cut = (torch.rand(count, generator=generator) * space.units[sites]).long()
        kept[torch.arange(count), sites] = cut
        return kept


class Mixture(Sampler):
    """Several samplers, each drawing its share.

    Args:
        parts: name → sampler.
        shares: name → its part of the draw; they need not sum to one.
    """

    def __init__(self, parts: Mapping[str, Sampler], shares: Mapping[str, float]) -> None:
        self.parts, self.shares = parts, shares

    def draw(self, space: Space, count: int, generator: torch.Generator) -> Tensor:
        whole, drawn, reached = sum(self.shares.values()), [], 0.0
        for name, sampler in self.parts.items():
            start, reached = round(reached * count), reached + self.shares[name] / whole
            drawn.append(sampler.draw(space, round(reached * count) - start, generator))
        return torch.cat(drawn)[torch.randperm(count, generator=generator)]


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
