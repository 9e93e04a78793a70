"""The labelled set as a DataModule: folds by policy, stratified by ratio, all in memory."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from lightning import LightningDataModule
from torch import Tensor

from ppf.errors import PPFError
from ppf.labels.table import Labels
from ppf.progress import say
from ppf.space import Space


class Batch(NamedTuple):
    """Labelled policies.

    Args:
        kept: units kept, per policy and site.
        nll: measured log-perplexity, nats per token, always finite.
        ratio: pruning ratio reached.
        weights: how much the row counts for each member of an ensemble; zero where the member must
            not see it.
    """

    kept: Int[Tensor, "rows sites"]
    nll: Float[Tensor, " rows"]
    ratio: Float[Tensor, " rows"]
    weights: Float[Tensor, "rows members"]


class Batches:
    """A loader over rows in memory, reshuffled as they run out, whatever the length of an epoch.

    Args:
        rows: all rows.
        size: rows of a batch; with that many rows or fewer, every batch holds all of them.
        steps: batches of an epoch.
        generator: of the shuffles; None keeps the order.
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
    """Splits a labelled set into test and train, and train into one fold for each member.

    A member trains on all folds but its own, which serves as its validation: every training row
    is thus predicted by a member that has not seen it. Equal policies always fall together. Only
    policies that a sampler drew are held out; what a search proposed or a predictor asked for is
    always trained on. Rows without a finite label are dropped, and their number is said.

    Args:
        labels: the labelled set.
        space: what its policies are of.
        test: share of the drawn policies that is held out.
        strata: bins of equally many policies by ratio, each split alike.
        members: ensemble members, so many folds.
        proposals: what a policy that a search proposed counts, relative to a drawn one.
        low_loss: the policy of least loss in its bin counts 1 + low_loss, the one of most counts 1.
        batch_size: rows of a training batch.
        steps: training batches of an epoch.
        seed: of the split and the shuffles.

    Raises:
        PPFError: a part or a fold comes out empty.

    Source of the folds: cross-validation committees (Krogh & Vedelsby, NeurIPS 1994).
    """

    def __init__(
        self,
        labels: Labels,
        space: Space,
        *,
        test: float,
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
                f"predictor.members={members} leaves no member that has not seen a policy:"
                " give at least 2."
            )
        self.batch_size, self.steps, self.strata = batch_size, steps, strata
        self.generator = torch.Generator().manual_seed(seed)
        finite = labels.nll.isfinite()
        if not finite.all():
            say(f"Leaving out {int((~finite).sum())} of {len(labels)} labels that are not finite.")
        kept, nll, proposed = labels.kept[finite], labels.nll[finite], labels.proposed[finite]
        ratio, drawn = space.ratio(kept), ~(proposed | labels.acquired[finite])

        held_out = torch.zeros_like(proposed)
        held_out[drawn] = self._deal(kept[drawn], ratio[drawn], [1 - test, test]) == 1
        fold = self._deal(kept[~held_out], ratio[~held_out], [1 / members] * members)
        weights = torch.ones(len(kept), members)
        weights[~held_out] = (fold[:, None] != torch.arange(members)).float()
        counts = (1 + low_loss * self._standing(ratio, nll)) * torch.where(proposed, proposals, 1)
        weights = weights * counts[:, None].float()
        weights = weights / weights[~held_out].mean(0)
        self.rows = rows = Batch(kept, nll.float(), ratio.float(), weights)
        self.parts = {"train": take(rows, ~held_out), "test": take(rows, held_out)}
        if held_out.sum() == 0 or len(fold.unique()) < members:
            raise PPFError(
                f"{len(nll)} finite labels are too few to split into a test part and {members}"
                " folds: give more with labels.count."
            )

    def train_dataloader(self) -> Batches:
        return Batches(self.parts["train"], self.batch_size, self.steps, self.generator)

    def val_dataloader(self) -> Batches:
        return self._whole("train")

    def test_dataloader(self) -> Batches:
        return self._whole("test")

    def _whole(self, part: str) -> Batches:
        rows = self.parts[part]
        return Batches(rows, self.batch_size, -(-len(rows.nll) // self.batch_size), None)

    def _deal(self, kept: Tensor, ratio: Tensor, shares: list[float]) -> Int[Tensor, " rows"]:
        """Each row's part: policies, shuffled within their stratum, are dealt out by the shares."""
        policies, policy = torch.unique(kept, dim=0, return_inverse=True)
        count = len(policies)
        if count == 0:
            return policy
        ratios = ratio.new_zeros(count).scatter_(0, policy, ratio)
        stratum = ratios.argsort().argsort() * self.strata // count
        queue = (stratum + torch.rand(count, generator=self.generator)).argsort()
        part = torch.empty_like(queue)
        part[queue] = _deal(count, shares)
        return part[policy]

    def _standing(self, ratio: Tensor, nll: Tensor) -> Float[Tensor, " rows"]:
        """One for the row of least loss in its stratum, down to zero for the one of most."""
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


def _deal(count: int, shares: list[float]) -> Int[Tensor, " count"]:
    """Deals `count` cards to parts so that every run of cards is shared out as evenly as can be."""
    given = [0] * len(shares)
    parts = []
    for dealt in range(1, count + 1):
        owed = [share * dealt - have for share, have in zip(shares, given, strict=True)]
        part = owed.index(max(owed))
        given[part] += 1
        parts.append(part)
    return torch.tensor(parts)
