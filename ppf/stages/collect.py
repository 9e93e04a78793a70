"""collect: labels for the policies that the sampler draws."""

from pathlib import Path

import torch
from hydra.utils import instantiate

from ppf.labels.collect import draw, label
from ppf.labels.store import LabelStore
from ppf.labels.table import Labels
from ppf.progress import say
from ppf.stages.prepare import PruningContext
from ppf.stages.signatures import require


def label_store(context: PruningContext) -> LabelStore:
    """All labels that there are for this model, text, space, order and compensation."""
    name, units = context.signatures.labels, context.space.units.tolist()
    return LabelStore(Path(context.cfg.paths.artefacts) / "labels" / name, name, units)


def drawn(context: PruningContext) -> torch.Tensor:
    """The policies that the config's sampler draws, [rows, sites]."""
    cfg = context.cfg
    return draw(context, instantiate(cfg.sampler), cfg.labels.count, cfg.seed)


def collect(context: PruningContext, *, upstream: bool = False) -> Labels:
    """Labels what the sampler draws and has no label yet.

    Args:
        upstream: called by a later stage, which `upstream=require` forbids to label.
    """
    broadcast = context.fabric.broadcast  # rank 0 counts: the others may see its first labels
    store, policies = label_store(context), broadcast(drawn(context))
    missing = broadcast(sum(kept not in store for kept in policies.tolist()))
    if not missing:
        say(f"Reusing {len(policies)} labels in {store.folder}.")
    elif upstream:
        require(context.cfg, "labels", "python collect.py")
    return label(store, context.labeller, policies, "sampler")
