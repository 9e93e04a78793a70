"""The labelled set as a DataModule: split by policy, stratified by ratio, all in memory."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from lightning import LightningDataModule
from torch import Tensor

from ppf.errors import PPFError
from ppf.labels.table import Labels
from ppf.progress import say
from ppf.space import Space

_PARTS = ("train", "validation", "test")


class Batch(NamedTuple):
    """Labelled policies.

    Args:
        kept: units kept, per policy and site.
        nll: measured log-perplexity, nats per token, always finite.
        ratio: pruning ratio reached.
        weights: how much the row counts for each member of an ensemble, one on average.
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
    """Splits a labelled set into train, validation and test.

    Equal policies always fall into the same part. Rows without a finite label are dropped, and
    their number is said.

    Args:
        labels: the labelled set.
        space: what its policies are of.
        shares: of the parts "train", "validation" and "test"; they sum to one.
        strata: bins of equally many policies by ratio, each split in these shares.
        members: ensemble members; each weighs the training rows by its own Bayesian bootstrap
            (Rubin 1981).
        batch_size: rows of a training batch.
        steps: training batches of an epoch.
        seed: of the split, the bootstrap and the shuffles.

    Raises:
        PPFError: a part comes out empty.
    """

    def __init__(
        self,
        labels: Labels,
        space: Space,
        *,
        shares: Mapping[str, float],
        strata: int,
        members: int,
        batch_size: int,
        steps: int,
        seed: int,
    ) -> None:
        super().__init__()
        self.batch_size, self.steps = batch_size, steps
        self.generator = torch.Generator().manual_seed(seed)
        finite = labels.nll.isfinite()
        if not finite.all():
            say(f"Leaving out {int((~finite).sum())} of {len(labels)} labels that are not finite.")
        kept, nll = labels.kept[finite], labels.nll[finite]
        ratio = space.ratio(kept)
        part = self._split(kept, ratio, shares, strata)
        rows = Batch(kept, nll.float(), ratio.float(), self._bootstrap(part == 0, members))
        self.parts = {name: take(rows, part == i) for i, name in enumerate(_PARTS)}
        if min(len(rows.nll) for rows in self.parts.values()) == 0:
            raise PPFError(
                f"{len(nll)} finite labels are too few to split into train, validation and test:"
                " give more with labels.count."
            )

    def train_dataloader(self) -> Batches:
        return Batches(self.parts["train"], self.batch_size, self.steps, self.generator)

    def val_dataloader(self) -> Batches:
        return self._whole("validation")

    def test_dataloader(self) -> Batches:
        return self._whole("test")

    def _whole(self, part: str) -> Batches:
        rows = self.parts[part]
        return Batches(rows, self.batch_size, -(-len(rows.nll) // self.batch_size), None)

    def _split(
        self, kept: Tensor, ratio: Tensor, shares: Mapping[str, float], strata: int
    ) -> Int[Tensor, " rows"]:
        """Each row's part: policies, shuffled within their stratum, are dealt out by the shares."""
        policies, policy = torch.unique(kept, dim=0, return_inverse=True)
        count = len(policies)
        if count == 0:
            return policy
        ratios = ratio.new_zeros(count).scatter_(0, policy, ratio)
        stratum = ratios.argsort().argsort() * strata // count
        queue = (stratum + torch.rand(count, generator=self.generator)).argsort()
        part = torch.empty_like(queue)
        part[queue] = _deal(count, [shares[name] for name in _PARTS])
        return part[policy]

    def _bootstrap(self, train: Tensor, members: int) -> Float[Tensor, "rows members"]:
        weights = torch.ones(len(train), members)
        if members > 1:
            drawn = torch.empty(int(train.sum()), members).exponential_(generator=self.generator)
            weights[train] = drawn / drawn.mean(0)
        return weights


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
