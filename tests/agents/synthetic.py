"""A predictor that knows the best policy, to search against without a model."""

from collections.abc import Sequence
from functools import cache

import torch
from hydra.utils import instantiate
from jaxtyping import Float, Int
from lightning import Fabric
from omegaconf import DictConfig
from torch import Tensor

from ppf.agents import Agent, Objective
from ppf.conf import read_option
from ppf.predictor.protocol import Prediction
from ppf.pruning import SiteFeatures, Traits
from ppf.space import Prunable, Space, build_space
from tests.composing import command_config


def layered(
    layers: int = 10,
    kinds: Sequence[str] = ("attention", "mlp"),
    groups: int = 3,
    *,
    whole_sites: bool = False,
) -> Space:
    """Three KV groups, a quarter of the parameters, and 24 MLP blocks a layer, as in SmolLM2."""
    blocks = [("attention", groups, 8 * 64), ("mlp", 24 * 64, 3)]
    return build_space(
        [Prunable(layer, *block) for layer in range(layers) for block in blocks],
        name="width",
        kinds=kinds,
        channel_multiple=64,
        whole_sites=whole_sites,
    )


class Quadratic:
    """Squared distance from a target that keeps attention whole and prunes MLPs unevenly.

    It remembers the policies that it was asked for.
    """

    def __init__(self, space: Space, ratio: float) -> None:
        whole = torch.tensor([site.kind == "attention" for site in space.sites])
        uneven = 1 - ratio / 0.75 + torch.linspace(-0.15, 0.15, len(space))
        self.target = torch.where(whole, 1.0, uneven)
        self.units = space.units
        self.asked: set[tuple[int, ...]] = set()

    def predict(self, kept: Int[Tensor, "batch sites"]) -> Prediction:
        self.asked.update(map(tuple, kept.tolist()))
        mean = self.relaxed(kept.float())
        return Prediction(mean, torch.full_like(mean, 0.01))

    def relaxed(self, kept: Float[Tensor, "batch sites"]) -> Float[Tensor, " batch"]:
        return 3 + (kept / self.units - self.target).square().sum(1)


def features(space: Space) -> SiteFeatures:
    """Quadratic errors, and a model of which nothing else is known."""
    kept = torch.arange(int(space.units.max()) + 1) / space.units[:, None]
    nothing = torch.zeros(space.layers)
    traits = Traits(nothing, torch.zeros(space.layers, 16), nothing, {}, {})
    errors, energy = (1 - kept).clamp_min(0).square(), torch.ones(len(space))
    return SiteFeatures(space, errors, kept.clamp(max=1), energy, errors, traits)


def quadratic(space: Space | None = None, ratio: float = 0.3, **changes: float) -> Objective:
    """An objective over `Quadratic`."""
    space = space or layered()
    settings = {"spread_penalty": 1.0, "trust_region": 0.5} | changes
    return Objective(
        features=features(space),
        rules={},
        predictor=Quadratic(space, ratio),
        interval=(ratio, ratio),
        device=torch.device("cpu"),
        **settings,
    )


@cache
def agent_config(name: str) -> DictConfig:
    """An option of conf/agent; composing takes a quarter of a second."""
    return command_config("search", [f"agent={name}"]).agent


def agent(name: str, **changes: object) -> Agent:
    """The agent of conf/agent, some of its hyper-parameters changed."""
    return instantiate(agent_config(name), **changes)


def one_process() -> Fabric:
    """The default Fabric."""
    return instantiate(read_option("fabric", "default"))


class Log(list):
    """A report that remembers."""

    def __call__(self, step: int, metrics: dict) -> None:
        self.append((step, {name: float(value) for name, value in metrics.items()}))
