"""collect: labels for the policies that the sampler draws."""

import torch
from hydra.utils import instantiate
from jaxtyping import Float, Int
from omegaconf import DictConfig
from torch import Tensor

from ppf.context.prepare import PruningContext
from ppf.context.signatures import missing
from ppf.labels.collect import draw, label
from ppf.labels.store import LabelStore
from ppf.labels.table import Labels
from ppf.progress import say, track


def label_store(context: PruningContext) -> LabelStore:
    """The stored labels of this model, text, space, order and compensation."""
    name, units = context.label_name, context.space.units.tolist()
    return LabelStore(context.artefacts.folder / "labels" / name, name, units)


def measure(
    context: PruningContext,
    policies: Int[Tensor, "policies sites"],
    source: str,
    store: LabelStore | None = None,
) -> Labels:
    """Labels of the policies, in their order; missing ones are measured.

    Args:
        source: name of what proposed the policies, as in "sampler".
        store: the known labels; None: they are read again.
    """
    context.labeller.used.update(map(tuple, policies.tolist()))
    known = label_store(context) if store is None else store
    return label(known, context.labeller, policies.cpu(), source, context.artefacts.ranks)


def screen(
    context: PruningContext, policies: Int[Tensor, "policies sites"], windows: int
) -> Float[Tensor, " policies"]:
    """Losses on the first windows of the labelling part, nats per token; they are not stored."""
    labeller = context.labeller_of(context.labeller.windows[:windows])
    rows = list(map(tuple, policies.tolist()))
    size = labeller.windows.numel()
    context.passes.update({("screening", windows, kept): size for kept in rows})
    found = {kept: labeller.score(kept).nll for kept in track(sorted(rows), "Screening")}
    return torch.tensor([found[kept] for kept in rows])


def collect(
    context: PruningContext, sampler: DictConfig, count: int, seed: int, *, may_label: bool = True
) -> Labels:
    """Labels the policies that the sampler draws, the dense one first.

    Args:
        sampler: config of the sampler.
        count: of policies.
        seed: of the sampler.

    Raises:
        PPFError: a label is missing, and `may_label` is false.
    """
    broadcast = context.artefacts.ranks.broadcast  # others may see rank 0's first labels
    store = label_store(context)
    policies = broadcast(draw(context, instantiate(sampler), count, seed))
    complete = all(kept in store for kept in policies.tolist())
    if broadcast(complete):
        say(f"Reusing {len(policies)} labels in {store.folder}.")
    elif not may_label:
        raise missing("labels", "python collect.py")
    return measure(context, policies, "sampler", store)
