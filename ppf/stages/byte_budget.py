"""budget=bytes: a search that removes units and quantises the others, under a budget of bytes."""

import math
from dataclasses import dataclass, replace
from typing import cast

import torch
from hydra.utils import get_class, instantiate
from jaxtyping import Float
from omegaconf import DictConfig
from torch import Tensor, nn

from ppf.agents.gradient import Gradient
from ppf.artefacts import signature
from ppf.errors import PPFError
from ppf.labels.context import PruningContext
from ppf.labels.labelling import Labelling
from ppf.predictor.base import needs_labels, unfitted
from ppf.pruning import SiteFeatures
from ppf.pruning.allocation import FLAP, LeastExpectedLoss, ObsGlobal
from ppf.pruning.costs import Bytes
from ppf.pruning.options import TYPES, ByteModel, Options, check_blocks
from ppf.pruning.rounding_sensitivity import RoundingLosses, rounding_sensitivity
from ppf.space import Space, project

_ROUNDED = TYPES[1:]


def check_bytes(cfg: DictConfig) -> None:
    """Raises PPFError if a search with budget=bytes would count units instead of bytes."""
    if cfg.budget.name != "bytes":
        return
    rules = instantiate(cfg.rules).values()
    counts_units = any(isinstance(rule, FLAP | ObsGlobal) for rule in rules)
    learns = needs_labels(unfitted(cfg.predictor))
    uses_gradients = get_class(cfg.agent._target_) is Gradient
    if cfg.mode != "static" or learns or counts_units or uses_gradients:
        raise PPFError(
            "budget=bytes finds a policy for one ratio, by an agent that does not need gradients,"
            " from rules that count bytes: give agent=evolution rules=bytes, mode=static and"
            " predictor=expected (or sensitivity)."
        )


def in_bytes(context: PruningContext, cfg: DictConfig) -> PruningContext:
    """The context of a search with budget=bytes. With any other budget, returns the given one.

    Raises:
        PPFError: a row of a matrix has no whole blocks to quantise, or no policy saves `cfg.ratio`.
    """
    if cfg.budget.name != "bytes":
        return context
    cost: Bytes = instantiate(cfg.budget.cost)
    units = context.model
    check_blocks(units.lm, units.space)
    rounding, prices = _rounding(context), cast(list[int], cost.prices(units.pruner))
    options = Options.of(units.space, prices, rounding.losses, cost)
    most = float(options.space.saved(torch.tensor([steps[0] for steps in options.steps])))
    if cfg.ratio > most:
        raise PPFError(
            f"ratio={cfg.ratio} of the bytes cannot be saved with these budget.cost.types: give"
            f" ratio={math.floor(1000 * most) / 1000} or less, or budget.cost.prune=true."
        )
    model = ByteModel(options.space, units.pruner, units.compensation, units.parameters, options)
    parts = options.steps, options.kept, options.choice
    name = signature("bytes", context.labelling.name, *parts)
    sites = ByteSites(options.space, options.features(context.sites.features, rounding))
    labelling = replace(context.labelling, model=model, name=name)
    return replace(context, model=model, sites=sites, labelling=labelling)


@dataclass(frozen=True)
class ByteSites:
    """The sites of a space whose policies are levels of bytes, and their features."""

    space: Space
    features: SiteFeatures


def _rounding(context: PruningContext) -> RoundingLosses:
    """Expected losses of rounding to all types; computed if the artefact is missing.

    Weights in 16 bits count as not rounded.
    """
    features = context.sites.features  # all ranks compute them together

    def observe(windows: Tensor) -> dict[str, Tensor]:
        found = rounding_sensitivity(context.model.pruner, windows, _ROUNDED, seed=0)
        return vars(found) | {"weight": _weight(context.labelling, features, found.losses[:, -1])}

    name = signature("rounding", context.labelling.name, _ROUNDED)
    found = context.calibration.observed("rounding", name, observe)
    context.labelling.passes["weight"] = 2 * context.labelling.windows.numel()  # see `_weight`
    pruning = features.losses[:, None]
    rounded = pruning + found["weight"] * (found["losses"] - pruning)
    noise = nn.functional.pad(found["weight"] * found["noise"], (1, 0))
    return RoundingLosses(torch.cat([pruning, rounded], 1), noise)


def _weight(
    labelling: Labelling, features: SiteFeatures, rounding: Float[Tensor, "sites levels"]
) -> Float[Tensor, "1"]:
    """The measured loss of rounding, relative to that of pruning with the same expected loss.

    One policy rounds all sites, the other one prunes in 16 bits. Pruning costs more than expected,
    because its compensation is fitted to the windows on which expected losses are computed.

    Args:
        rounding: expected losses of the format with the fewest bits.
    """
    pruner = labelling.model.pruner
    space = pruner.space
    sites, ratio = torch.arange(len(space)), torch.linspace(0, 0.9, 91).double()
    pruned = project(space, LeastExpectedLoss().wanted(features, ratio), ratio)
    goal = rounding[sites, space.units].sum()
    same = int((features.losses[sites, pruned].sum(1) - goal).abs().argmin())
    dense, types = space.dense.tolist(), [TYPES[-1]] * len(space)
    nll = []
    for kept, rounded in ((dense, None), (dense, types), (pruned[same].tolist(), None)):
        with pruner.at(kept, rounded):
            nll.append(labelling.present_nll())
    excess = (torch.tensor(nll[1:]) - nll[0]).clamp(min=_LEAST)
    return excess[:1] / excess[1:]


_LEAST = 1e-3  # nats per token
