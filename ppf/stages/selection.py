"""Measures the best policies of a search on windows that it did not use."""

from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float, Int
from omegaconf import DictConfig
from torch import Tensor

from ppf.evaluation.perplexity import Piece, window_losses
from ppf.labels.labelling import Labelling
from ppf.progress import say, track
from ppf.ranks import on_rank_0
from ppf.search.selection import select
from ppf.stages.search import Found
from ppf.text.windows import evenly


def with_selection(labelling: Labelling, found: Found, settings: DictConfig) -> Found:
    """The result, with its best policies measured on the selection part by rank 0.

    The selection part is `search.selection_windows` windows of the labelling part's documents that
    no label reads. Without such windows, nothing is measured.

    Args:
        labelling: measured the found policies.
        settings: section `search` of the config.
    """
    new = evenly(labelling.others, settings.selection_windows)
    if not len(new):
        why = "the labels use all windows"
        if settings.selection_windows == 0:
            why = "search.selection_windows=0"
        say(f"The best policies are not measured on a selection part: {why}.")
        return found
    measure, measured = partial(_losses, labelling, new), found.measured
    ranks = labelling.artefacts.ranks
    return replace(
        found,
        selection=on_rank_0(
            ranks, lambda: select(measured, found.eligible, settings.finalists, measure)
        ),
    )


def _losses(
    labelling: Labelling, new: Int[Tensor, "windows window"], kept: Int[Tensor, "n sites"]
) -> tuple[Float[Tensor, "n used"], Float[Tensor, "n new"]]:
    """Losses of policies in each window of the labelling and of the selection part."""
    settings, used = labelling.settings, labelling.windows
    pieces = [Piece(windows, settings.context) for windows in (used, new)]
    before = labelling.passes.get("selection", 0)  # of other ratios
    labelling.passes["selection"] = before + len(kept) * (used.numel() + new.numel())
    rows = []
    for policy in track(kept.tolist(), "Measuring the best policies on the selection part"):
        with labelling.model.at(policy) as model:
            rows.append(window_losses(model, pieces, batch=settings.batch))
    found = torch.stack(rows)
    return found[:, : len(used)], found[:, len(used) :]
