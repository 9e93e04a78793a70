"""Draws policies and labels them."""

import time
from itertools import chain, repeat

import torch
from jaxtyping import Int
from torch import Tensor

from ppf.labels.labeller import Labeller
from ppf.labels.samplers import SampledSites, Sampler
from ppf.labels.store import LabelRow, LabelStore
from ppf.labels.table import Labels
from ppf.progress import say, track
from ppf.ranks import Ranks
from ppf.seeds import numbered
from ppf.space import new_policies

_ROUND = 32  # policies in one draw of a sampler


def draw(
    sampled: SampledSites, sampler: Sampler, count: int, seed: int
) -> Int[Tensor, "rows sites"]:
    """Draws at most `count` distinct policies, with the dense policy first.

    The same seed gives the same policies, and a larger count only appends to them, because the
    sampler always draws the same number of policies at a time.

    Args:
        sampled: the space and its features.
        sampler: the sampler.
        count: largest number of policies; fewer if the sampler repeats itself.
        seed: seed of the sampler.
    """
    rounds = [
        sampler.draw(sampled, _ROUND, numbered(seed, number), number)
        for number in range(-(-(count - 1) // _ROUND))
    ]
    kept = torch.cat([sampled.space.dense[None], *rounds])[:count]
    return new_policies(kept, kept[:0])


def label(
    store: LabelStore,
    labeller: Labeller,
    policies: Int[Tensor, "rows sites"],
    source: str,
    ranks: Ranks | None = None,
) -> Labels:
    """Labels the policies that have no label yet.

    Several processes may label the same store at once. The process that claims a policy labels it;
    this function returns when all policies have labels. Ranks start at different places of the
    sorted list: neighbours there share their first layers, and one process should label both.

    Args:
        store: the stored labels.
        labeller: measures the loss of a policy.
        policies: the policies.
        source: name of the sampler or search that the policies are from.
        ranks: the processes of this run; None: there is only this one.

    Returns:
        The labels of all policies, in their order. All have the given source, even if they were
        stored with another one.
    """
    missing = sorted({tuple(kept) for kept in policies.tolist() if kept not in store})
    if missing:
        known = len(policies.unique(dim=0)) - len(missing)
        others = f" {known} more are labelled already." if known else ""
        say(f"Labelling {len(missing)} {'policy' if len(missing) == 1 else 'policies'}.{others}")
    first = len(missing) * ranks.global_rank // ranks.world_size if ranks else 0
    own = track(missing[first:] + missing[:first], "Labelling")
    # Then those that other processes have claimed; they may have been killed.
    for kept, wait in chain(zip(own, repeat(False)), zip(missing, repeat(True))):
        with store.claim(kept, wait=wait) as mine:
            if mine:
                start = time.perf_counter()
                nll = labeller.score(kept)
                ratio = float(labeller.pruner.space.ratio(torch.tensor(kept)))
                store.add(LabelRow(kept, ratio, nll, source, time.perf_counter() - start))
    return store.labels(policies, source)
