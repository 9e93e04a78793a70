"""The budget of a search, and the costs of policies under other budgets."""

import json
import os
import platform
from dataclasses import replace
from pathlib import Path

import torch
from hydra.utils import instantiate
from jaxtyping import Float, Int
from omegaconf import DictConfig
from torch import Tensor

from ppf.artefacts import signature
from ppf.digests import with_code
from ppf.labels.context import PruningContext
from ppf.progress import say
from ppf.pruning.costs import Cost
from ppf.ranks import on_rank_0
from ppf.space import Space
from ppf.space.sites import Price


def priced(context: PruningContext, budget: DictConfig) -> Space:
    """The model's space under a budget.

    Raises:
        PPFError: no site has a cost under this budget.
    """
    if context.model.space.budget == "bytes":  # see `in_bytes`
        return context.model.space
    return context.model.space.priced(budget.name, prices(context, budget))


def saved(
    context: PruningContext, budget: DictConfig, kept: Int[Tensor, "n sites"]
) -> Float[Tensor, " n"]:
    """The share of a cost that policies save; 0 if no site of the space has this cost."""
    model = context.model
    if model.space.budget == budget.name:
        return model.space.saved(kept)
    space = replace(model.pruner.space, prices=tuple(prices(context, budget)))
    return space.saved(model.units(kept))


def prices(context: PruningContext, budget: DictConfig) -> list[Price]:
    """The prices of the units of each site. Measured prices are measured once on a machine."""
    cost: Cost = instantiate(budget.cost)
    if not cost.measured:
        return cost.prices(context.model.pruner)
    artefacts, device = context.labelling.artefacts, context.model.lm.device
    config, model = with_code(budget, artefacts.folder), context.config.model
    machine = {
        "host": platform.node(),
        "processor": platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        **{key: model.get(key) for key in ("offload", "device_map")},
    }
    parts = context.signatures.labels, config, machine
    # Ranks on other machines take rank 0's measurement.
    name = on_rank_0(artefacts.ranks, lambda: signature("costs", *parts))

    def measure(draft: Path) -> None:
        say(f"Measuring the {budget.name} of this model on this machine.")
        draft.write_text(json.dumps(cost.prices(context.model.pruner)), encoding="utf-8")

    def read(file: Path) -> list[Price]:
        stored = json.loads(file.read_text(encoding="utf-8"))
        return [tuple(price) if isinstance(price, list) else int(price) for price in stored]

    return artefacts.get_or_make("costs", f"{name}.json", read=read, make=measure)
