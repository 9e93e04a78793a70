"""Collecting labels: from drawn policies to rows on disk."""

import time
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from ppf.labels.labeller import Labeller
from ppf.labels.samplers import Sampler, SamplingContext
from ppf.labels.store import LabelStore, Row
from ppf.labels.table import Labels
from ppf.progress import say, track

_ROUND = 32  # policies, each round of them stratified by itself


def draw(
    context: SamplingContext, sampler: Sampler, count: int, seed: int
) -> Int[Tensor, "rows sites"]:
    """The distinct policies that a sampler gives, at most `count`, the dense one first.

    The same seed gives the same policies, and a larger count only adds to them: they are drawn in
    rounds of a fixed size.
    """
    rounds = [
        sampler.draw(
            context, _ROUND, torch.Generator().manual_seed(seed * 1_000_003 + number), number
        )
        for number in range(-(-count // _ROUND))
    ]
    kept = torch.cat([context.space.dense[None], *rounds])[:count]
    return torch.tensor(list(dict.fromkeys(map(tuple, kept.tolist()))))


def label(
    store: LabelStore, labeller: Labeller, policies: Int[Tensor, "rows sites"], source: str
) -> Labels:
    """Labels what has no label yet and returns the labels of all `policies`, in their order.

    Whatever asked for a label first, all that are returned are of this source.

    Ranks and other processes may work on the same store at once: each policy is labelled by the
    one that claims it, and this returns when all have labels, whoever made them.
    """
    missing = sorted({tuple(kept) for kept in policies.tolist() if kept not in store})
    if 0 < len(missing) < len(policies):
        say(f"{len(policies) - len(missing)} of {len(policies)} policies are labelled already.")
    for kept in track(missing, f"Labelling {len(missing)} policies"):
        with store.claim(kept) as mine:
            if mine:
                _label_one(store, labeller, kept, source)
    for kept in missing:  # what others had claimed is there by now, or was left by a killed process
        with store.claim(kept, wait=True) as mine:
            if mine:
                _label_one(store, labeller, kept, source)
    return replace(store.labels(policies), source=[source] * len(policies))


def _label_one(store: LabelStore, labeller: Labeller, kept: tuple[int, ...], source: str) -> None:
    start = time.perf_counter()
    score = labeller.score(kept)
    ratio = float(labeller.pruner.space.ratio(torch.tensor(kept)))
    store.add(Row(kept, ratio, score.nll, score.kl, source, time.perf_counter() - start))
