"""The labelled policies as a DataModule. Folds contain whole groups, stratified by ratio."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from lightning import LightningDataModule
from torch import Tensor

from ppf.errors import PPFError
from ppf.labels.groups import groups, too_few
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


class Batches:
    """A loader over rows in memory, which are shuffled before each epoch and after the last row.

    Args:
        rows: all rows.
        size: rows in a batch. If there are not more rows than that, every batch has all rows.
        steps: batches in an epoch.
        generator: random generator of the shuffles; None: the rows keep their order.
    """

    def __init__(
        self, rows: Batch, size: int, steps: int, generator: torch.Generator | None
    ) -> None:
        self.rows, self.size, self.steps, self.generator = rows, size, steps, generator

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        queue = self._order()
        for _ in range(self.steps):
            if len(queue) == 0:
                queue = self._order()
            chosen, queue = queue[: self.size], queue[self.size :]
            yield take(self.rows, chosen)

    def _order(self) -> Int[Tensor, " rows"]:
        count = len(self.rows.nll)
        if self.generator is None or count <= self.size:
            return torch.arange(count)
        return torch.randperm(count, generator=self.generator)


class LabelsDataModule(LightningDataModule):
    """Splits a labelled set into one fold for each member.

    A member trains on all folds but its own, on which it is validated. Every row therefore has an
    out-of-fold prediction. A group of policies, which share their first layers, is in one fold.
    Rows without a finite label are dropped, and their number is printed.

    Args:
        labels: the labelled set.
        space: the space of its policies.
        strata: number of bins by ratio, with equally many policies. Each bin is split alike.
        members: number of ensemble members, and of folds.
        proposals: weight of a policy that a search measured, relative to a sampled one.
        low_loss: extra weight of the policy of lowest loss in its bin. It falls to 0 for the policy
            of largest loss.
        batch_size: rows in a training batch.
        steps: training batches in an epoch.
        seed: seed of the split and of the shuffles.

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
        self,
        labels: Labels,
        space: Space,
        *,
        strata: int,
        members: int,
        proposals: float,
        low_loss: float,
        batch_size: int,
        steps: int,
        seed: int,
    ) -> None:
        super().__init__()
        if members < 2:
            raise PPFError(
                f"predictor.members={members} leaves no out-of-fold predictions: give at least 2."
            )
        self.batch_size, self.steps, self.strata = batch_size, steps, strata
        self.generator = torch.Generator().manual_seed(seed)
        finite = labels.nll.isfinite()
        if not finite.all():
            say(f"{int((~finite).sum())} of {len(labels)} labels are not finite and are left out.")
        kept, nll, proposed = labels.kept[finite], labels.nll[finite], labels.proposed[finite]
        ratio, pruned = space.ratio(kept), (kept != space.units).any(1)
        self.drawn = pruned & ~(proposed | labels.acquired[finite])
        self.group = groups(space, kept)
        fold = self._deal(self.group, ratio, members)
        if len(fold.unique()) < members:
            raise too_few(len(nll), len(self.group.unique()), members)
        weights = (fold[:, None] != torch.arange(members)).float()
        counts = (1 + low_loss * self._standing(ratio, nll)) * torch.where(proposed, proposals, 1)
        weights = weights * counts[:, None].float()
        self.rows = Batch(kept, nll.float(), ratio.float(), weights / weights.mean(0))

    def train_dataloader(self) -> Batches:
        return Batches(self.rows, self.batch_size, self.steps, self.generator)

    def val_dataloader(self) -> Batches:
        batches = -(-len(self.rows.nll) // self.batch_size)
        return Batches(self.rows, self.batch_size, batches, None)

    def _deal(self, group: Tensor, ratio: Tensor, folds: int) -> Int[Tensor, " rows"]:
        """The fold of each row; groups are shuffled within their stratum and dealt in turn."""
        count = len(group.unique())
        ratios = ratio.new_zeros(count).scatter_reduce_(0, group, ratio, "mean", include_self=False)
        stratum = ratios.argsort().argsort() * self.strata // max(count, 1)
        queue = (stratum + torch.rand(count, generator=self.generator)).argsort()
        fold = torch.empty_like(queue)
        fold[queue] = torch.arange(count) % folds
        return fold[group]

    def _standing(self, ratio: Tensor, nll: Tensor) -> Float[Tensor, " rows"]:
        """1 for the row of lowest loss in its stratum, falling to 0 for the row of largest loss."""
        stratum = ratio.argsort().argsort() * self.strata // max(len(ratio), 1)
        standing = torch.zeros(len(ratio))
        for number in range(self.strata):
            inside = stratum == number
            ranks = nll[inside].argsort().argsort()
            standing[inside] = 1 - ranks / (inside.sum() - 1).clamp(min=1)
        return standing


def take(rows: Batch, index: Tensor) -> Batch:
    """The chosen rows (by number, or by a mask)."""
    return Batch(*(field[index] for field in rows))
