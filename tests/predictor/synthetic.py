"""A made-up model whose losses follow from its reconstruction errors, and predictors of it."""

import copy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor

from ppf.labels.table import Labels
from ppf.predictor.base import PredictorInputs
from ppf.predictor.learned import LearnedPredictor
from ppf.predictor.module import PredictorModule
from ppf.pruning import SiteFeatures
from ppf.space import Site, Space, project
from tests.composing import command_config

DENSE_NLL = 3.0
LAYERS = 8


def made_up_space() -> Space:
    sites = []
    for layer in range(LAYERS):
        sites.append(Site(layer, "attention", units=3, atoms_per_unit=1, params=300))
        sites.append(Site(layer, "mlp", units=24, atoms_per_unit=64, params=110))
    return Space(tuple(sites))


def made_up_features(space: Space) -> SiteFeatures:
    """Errors are convex, from one at nothing kept to zero at everything; narrow rows end in zeros.

    Importance and energy tell nothing, and losses no more than errors.
    """
    share = (torch.arange(25) / space.units[:, None]).clamp(max=1)
    errors = (1 - share) ** torch.linspace(1.5, 3.5, len(space))[:, None]
    return SiteFeatures(space, errors, share, torch.full((len(space),), 0.1), 0.1 * errors)


def made_up_labels(
    space: Space, known: SiteFeatures, count: int, interaction: float = 0.3, other: float = 0.0
) -> Labels:
    """Policies near uniform, scored by a convex function of weighted errors that interact.

    Args:
        interaction: of a layer's attention and MLP.
        other: how far another text's weights lie from the usual ones.
    """
    generator = torch.Generator().manual_seed(0)
    weight = 0.3 + torch.rand(len(space), generator=generator)
    weight = weight * (1 + other * (-1.0) ** torch.arange(len(space)))
    ratio = torch.linspace(0.0, 0.6, count)
    noise = 1 + 0.25 * torch.randn(count, len(space), generator=generator)
    kept = project(space, (1 - ratio)[:, None] * noise * space.units, ratio)
    error = known.errors[torch.arange(len(space)), kept]
    damage = error @ weight + interaction * (error[:, 0::2] * error[:, 1::2]).sum(1)
    nll = DENSE_NLL + 0.25 * damage + 0.03 * damage**2
    nll = nll + 0.003 * torch.randn(count, generator=generator)
    return Labels(kept, nll, ["made up"] * count)


@cache
def _composed(overrides: tuple[str, ...]) -> dict[str, Any]:
    """Composing takes a quarter of a second."""
    cfg = command_config("train", list(overrides))
    groups = {group: cfg[group] for group in ("predictor", "trainer")}
    return {name: OmegaConf.to_container(part, resolve=True) for name, part in groups.items()}


def predictor_config(*overrides: str) -> dict[str, Any]:
    """The config groups `predictor` and `trainer` as a stage hands them on."""
    plain = copy.deepcopy(_composed(overrides))
    own = {key: value for key, value in plain["predictor"].items() if not key.startswith("_")}
    return plain | {"predictor": own}


def inputs(features: SiteFeatures, trainer: dict[str, Any], seed: int = 0) -> PredictorInputs:
    """What a predictor may use, without a real model and without loggers."""
    return PredictorInputs(features, DENSE_NLL, _refuse, _refuse, trainer, seed)


def _refuse(*_: object) -> Tensor:
    raise AssertionError("there is no real model")


def untrained(features: SiteFeatures, *overrides: str) -> PredictorModule:
    """The module with its initial weights."""
    config = predictor_config(*overrides)
    return LearnedPredictor(**config["predictor"]).untrained(inputs(features, config["trainer"]))


def fitted_with(
    labels: Labels, features: SiteFeatures, folder: Path, *overrides: str, seed: int = 0
) -> LearnedPredictor:
    """A predictor fitted with the defaults of the configs but for `overrides`, and saved."""
    config = predictor_config(*overrides)
    predictor = LearnedPredictor(**config["predictor"])
    predictor.fit(labels, inputs(features, config["trainer"], seed))
    folder.mkdir(parents=True, exist_ok=True)
    predictor.save(folder)
    return predictor
