"""collect: labels for the policies that the sampler draws."""

from hydra.utils import instantiate
from omegaconf import DictConfig

from ppf.context.labelling import Labelling
from ppf.context.signatures import missing
from ppf.labels.collect import draw
from ppf.labels.samplers import SamplingContext
from ppf.labels.table import Labels
from ppf.progress import say


def collect(
    labelling: Labelling,
    sites: SamplingContext,
    sampler: DictConfig,
    count: int,
    seed: int,
    *,
    may_label: bool = True,
) -> Labels:
    """Labels the policies that the sampler draws, the dense one first.

    Args:
        labelling: measures them.
        sites: of the space that is sampled.
        sampler: config of the sampler.
        count: of policies.
        seed: of the sampler.

    Raises:
        PPFError: a label is missing, and `may_label` is false.
    """
    broadcast = labelling.artefacts.ranks.broadcast  # others may see rank 0's first labels
    store = labelling.store
    policies = broadcast(draw(sites, instantiate(sampler), count, seed))
    complete = all(kept in store for kept in policies.tolist())
    if broadcast(complete):
        say(f"Reusing {len(policies)} labels in {store.folder}.")
    elif not may_label:
        raise missing("labels", "python collect.py")
    return labelling.measure(policies, "sampler", store)
