"""collect: labels for the policies that the sampler draws."""

from pathlib import Path

from hydra.utils import instantiate
from jaxtyping import Int
from torch import Tensor

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


def measure(
    context: PruningContext, policies: Int[Tensor, "policies sites"], source: str
) -> Labels:
    """Labels of the policies, in their order; those that are missing are made.

    Args:
        source: what proposed the policies, as in "sampler".
    """
    return label(label_store(context), context.labeller, policies.cpu(), source)


def drawn(context: PruningContext, count: int) -> Int[Tensor, "rows sites"]:
    """The policies that the config's sampler draws."""
    cfg = context.cfg
    return draw(context, instantiate(cfg.sampler), count, cfg.seed)


def collect(context: PruningContext, *, count: int | None = None, upstream: bool = False) -> Labels:
    """Labels the policies that the sampler draws, the dense one first.

    Args:
        count: of policies; None: `labels.count`.
        upstream: called by a later stage, which `upstream=require` forbids to label.
    """
    broadcast = context.fabric.broadcast  # rank 0 counts: the others may see its first labels
    store = label_store(context)
    policies = broadcast(drawn(context, count or context.cfg.labels.count))
    missing = broadcast(sum(kept not in store for kept in policies.tolist()))
    if not missing:
        say(f"Reusing {len(policies)} labels in {store.folder}.")
    elif upstream:
        require(context.cfg, "labels", "python collect.py")
    return measure(context, policies, "sampler")
