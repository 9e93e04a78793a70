"""The labelled policies as a DataModule. Folds contain whole groups, stratified by ratio."""

from collections.abc import Iterator
from itertools import repeat
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from lightning import LightningDataModule
from torch import Tensor

from ppf.errors import PPFError
from ppf.labels.groups import groups
from ppf.labels.table import Labels
from ppf.progress import say
from ppf.space import Space


class Batch(NamedTuple):
    """Labelled policies.

    Args:
        kept: units kept, per policy and site.
        nll: measured log-perplexity, nats per token, always finite.
        ratio: pruning ratio of each policy.
        weights: weight of each row in the loss of each ensemble member; zero if the member is not
            trained on the row.
    """

    kept: Int[Tensor, "rows sites"]
    nll: Float[Tensor, " rows"]
    ratio: Float[Tensor, " rows"]
    weights: Float[Tensor, "rows members"]


class Repeated:
    """A loader that gives the same rows in every step of an epoch."""

    def __init__(self, rows: Batch, steps: int) -> None:
        self.rows, self.steps = rows, steps

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        return repeat(self.rows, self.steps)


class LabelsDataModule(LightningDataModule):
    """Splits a labelled set into one fold for each member.

    A member trains on all folds but its own, on which it is validated. Every row therefore has an
    out-of-fold prediction. A group of policies, which share their first layers, is in one fold.
    Policies of low loss count up to twice as much as others of their stratum, since a search looks
    for them. Rows without a finite label are dropped, and their number is printed.

    Args:
        labels: the labelled set.
        space: the space of its policies.
        members: number of ensemble members, and of folds.
        steps: optimizer steps of an epoch, each on all rows.
        seed: seed of the split.

    Attributes:
        rows: all rows.
        group: number of each row's group.
        drawn: marks rows of policies that a sampler drew, not a search or a predictor. Scores on
            them describe random policies.

    Raises:
        PPFError: a fold is empty.

    Source of the folds: cross-validation committees (Krogh & Vedelsby, NeurIPS 1994).
    """

    def __init__(
        self, labels: Labels, space: Space, *, members: int, steps: int, seed: int
    ) -> None:
        super().__init__()
        self.steps, self.generator = steps, torch.Generator().manual_seed(seed)
        finite = labels.nll.isfinite()
        if not finite.all():
            say(f"{int((~finite).sum())} of {len(labels)} labels are not finite and are left out.")
        kept, nll, proposed = labels.kept[finite], labels.nll[finite], labels.proposed[finite]
        ratio, pruned = space.ratio(kept), (kept != space.units).any(1)
        self.drawn = pruned & ~proposed
        self.group = groups(space, kept)
        fold = self._deal(self.group, ratio, members)
        if len(fold.unique()) < members:
            raise PPFError(
                f"{len(nll)} labels of {len(self.group.unique())} groups (policies that share their"
                f" first layers) are too few for {members} folds, one for each of"
                " predictor.members: give a larger labels.count, or a smaller predictor.members."
            )
        weights = (fold[:, None] != torch.arange(members)).float()
        counts = (1 + _standing(ratio, nll)) * torch.where(proposed, _PROPOSED, 1)
        weights = weights * counts[:, None].float()
        self.rows = Batch(kept, nll.float(), ratio.float(), weights / weights.mean(0))

    def train_dataloader(self) -> Repeated:
        return Repeated(self.rows, self.steps)

    def val_dataloader(self) -> Repeated:
        return Repeated(self.rows, 1)

    def _deal(self, group: Tensor, ratio: Tensor, folds: int) -> Int[Tensor, " rows"]:
        """The fold of each row; groups are shuffled within their stratum and dealt in turn."""
        count = len(group.unique())
        ratios = ratio.new_zeros(count).scatter_reduce_(0, group, ratio, "mean", include_self=False)
        stratum = ratios.argsort().argsort() * _STRATA // max(count, 1)
        queue = (stratum + torch.rand(count, generator=self.generator)).argsort()
        fold = torch.empty_like(queue)
        fold[queue] = torch.arange(count) % folds
        return fold[group]


def _standing(ratio: Tensor, nll: Tensor) -> Float[Tensor, " rows"]:
    """1 for the row of lowest loss in its stratum, falling to 0 for the row of largest loss."""
    stratum = ratio.argsort().argsort() * _STRATA // max(len(ratio), 1)
    standing = torch.zeros(len(ratio))
    for number in range(_STRATA):
        inside = stratum == number
        ranks = nll[inside].argsort().argsort()
        standing[inside] = 1 - ranks / (inside.sum() - 1).clamp(min=1)
    return standing


_STRATA = 8  # bins by ratio, with equally many policies; folds are alike in each
_PROPOSED = 2.0  # weight of a policy that a search measured, relative to a drawn one
