"""A made-up model whose losses follow from its reconstruction facts, and predictors of it."""

from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from ppf.labels.table import Labels
from ppf.predictor.encoders import Facts
from ppf.predictor.fit import Fitted, fit_predictor
from ppf.space import Site, Space, project

DENSE_NLL = 3.0
LAYERS = 8


def made_up_space() -> Space:
    sites = []
    for layer in range(LAYERS):
        sites.append(Site(layer, "attention", units=3, atoms_per_unit=1, params=300))
        sites.append(Site(layer, "mlp", units=24, atoms_per_unit=64, params=110))
    return Space(tuple(sites))


def made_up_facts(space: Space) -> Facts:
    """Errors are convex, from one at nothing kept to zero at everything; narrow rows end in zeros.

    Importance and energy tell nothing, and losses no more than errors.
    """
    share = (torch.arange(25) / space.units[:, None]).clamp(max=1)
    errors = (1 - share) ** torch.linspace(1.5, 3.5, len(space))[:, None]
    return Facts(errors, share, torch.full((len(space),), 0.1), 0.1 * errors)


def made_up_labels(
    space: Space, facts: Facts, count: int, interaction: float = 0.3, other: float = 0.0
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
    error = facts.errors[torch.arange(len(space)), kept]
    damage = error @ weight + interaction * (error[:, 0::2] * error[:, 1::2]).sum(1)
    nll = DENSE_NLL + 0.25 * damage + 0.03 * damage**2
    nll = nll + 0.003 * torch.randn(count, generator=generator)
    return Labels(kept, nll, ["made up"] * count)


def predictor_config(*overrides: str) -> dict[str, Any]:
    """The config groups `predictor` and `trainer` as a stage hands them on."""
    with initialize_config_module("ppf.conf", version_base="1.3"):
        cfg = compose("train", list(overrides))
    groups = {group: cfg[group] for group in ("predictor", "trainer")}
    return {group: OmegaConf.to_container(part, resolve=True) for group, part in groups.items()}


def fitted_with(
    labels: Labels, space: Space, facts: Facts, folder: Path, *overrides: str, seed: int = 0
) -> Fitted:
    """A fit without loggers, with the defaults of the configs but for `overrides`."""
    return fit_predictor(
        labels,
        space,
        facts,
        DENSE_NLL,
        **predictor_config(*overrides),
        seed=seed,
        folder=folder,
        loggers=[],
        progress=False,
    )
