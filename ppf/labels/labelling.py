"""Measures policies on the labelling part of a text, and stores what it measured."""

from collections.abc import Hashable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from omegaconf import DictConfig
from torch import Tensor

from ppf.artefacts import Artefacts
from ppf.evaluation.perplexity import mean_nll
from ppf.labels.collect import label
from ppf.labels.labeller import Labeller
from ppf.labels.store import LabelStore
from ppf.labels.table import Labels
from ppf.progress import track
from ppf.pruning.prunable import PrunableModel
from ppf.threads import cpu_threads


@dataclass(frozen=True)
class Labelling:
    """Measures policies on the labelling part of a text.

    Args:
        model: the model that policies are applied to.
        windows: of the labelling part.
        others: windows of the same documents that no label reads, for the selection part.
        settings: section `labels` of the config.
        name: of the stored labels.
        artefacts: where they are stored, and the ranks that share the work.
        passes: tokens read for other purposes than labels, by purpose. A backward pass counts as
            two forward passes. What is read from an artefact counts as if it had been computed.
        used: policies whose labels this run has used, also labels of earlier runs.
        threads: CPU threads that measure. Agents use fewer, also when `predictor=oracle` measures.
    """

    model: PrunableModel
    windows: Int[Tensor, "windows window"]
    others: Int[Tensor, "others window"]
    settings: DictConfig
    name: str
    artefacts: Artefacts
    passes: dict[Hashable, int]
    used: set[tuple[int, ...]] = field(default_factory=set, init=False)
    threads: int = field(default_factory=torch.get_num_threads, init=False)

    @property
    def token_passes(self) -> int:
        """Number of tokens read for measurements and gradients of policies (see `passes`)."""
        return len(self.used) * self.windows.numel() + sum(self.passes.values())

    def add_other_ranks(self) -> None:
        """Also counts what other ranks have measured; all ranks must call this.

        With `predictor=oracle`, each rank measures policies of its own.
        """
        ranks = self.artefacts.ranks
        for rank in range(ranks.world_size):
            used, passes = ranks.broadcast((self.used, self.passes), rank)
            self.used.update(used)
            self.passes.update({key: passes[key] for key in passes.keys() - self.passes.keys()})

    @cached_property
    def labeller(self) -> Labeller:
        """Measures policies on all windows."""
        return self._labeller(self.windows)

    def _labeller(self, windows: Int[Tensor, "windows window"]) -> Labeller:
        return Labeller(self.model.lm, self.model, windows, batch=self.settings.batch)

    @cached_property
    def store(self) -> LabelStore:
        """The stored labels of this model, text, space, order and compensation, as last read."""
        units = self.model.space.units.tolist()
        return LabelStore(self.artefacts.folder / "labels" / self.name, self.name, units)

    def measure(self, policies: Int[Tensor, "policies sites"], source: str) -> Labels:
        """Labels of the policies, in their order; missing ones are measured.

        Args:
            source: name of what proposed the policies, as in "sampler".
        """
        self.used.update(map(tuple, policies.tolist()))
        self.store.refresh()
        with cpu_threads(self.threads):
            return label(self.store, self.labeller, policies.cpu(), source, self.artefacts.ranks)

    def screen(
        self, policies: Int[Tensor, "policies sites"], count: int, first: int
    ) -> Float[Tensor, " policies"]:
        """Losses on few windows of the part, nats per token; they are not stored.

        Args:
            count: number of windows.
            first: number of the first one; after the last window comes the first again.
        """
        every = len(self.windows)
        chosen = (first + torch.arange(min(count, every))) % every
        labeller = self._labeller(self.windows[chosen])
        rows = list(map(tuple, policies.tolist()))
        size = labeller.windows.numel()
        self.passes.update({("screening", first, count, kept): size for kept in rows})
        with cpu_threads(self.threads):
            found = {kept: labeller.score(kept) for kept in track(sorted(rows), "Screening")}
        return torch.tensor([found[kept] for kept in rows])

    def present_nll(self, windows: Int[Tensor, "windows window"] | None = None) -> float:
        """Loss of the model as it is now, under whatever policy; nats per token.

        Args:
            windows: None: those of the labelling part.
        """
        windows = self.windows if windows is None else windows
        return mean_nll(self.model.lm.model, windows, batch=self.settings.batch)
