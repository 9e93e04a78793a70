"""Estimates from the calibration part of a text, stored as artefacts; features of the sites."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppf.artefacts import Artefacts, signature
from ppf.pruning import Compensation, LivePruner, SiteFeatures, Traits, loss_changes, sensitivity
from ppf.pruning.sequential import refit_sequentially
from ppf.pruning.tensor_files import read_tensors, write_tensors
from ppf.space import Space
from ppf.text.windows import evenly

_STRIDE = 4  # expected losses are computed on every fourth window


@dataclass(frozen=True)
class Calibration:
    """Estimates losses of policies on the calibration part, by gradients.

    Args:
        pruner: applies policies to the model.
        windows: of the calibration part.
        others: further windows of this part, which only re-estimation reads; there may be none.
        first: further first tokens of windows (see `TokenWeights`); there may be none.
        name: signature of the level bank.
        artefacts: where the estimates are stored.
        passes: number of tokens read, by purpose (see `Labelling`).
    """

    pruner: LivePruner
    windows: Int[Tensor, "windows window"]
    others: Int[Tensor, "others window"]
    first: Int[Tensor, "tokens 1"]
    name: str
    artefacts: Artefacts
    passes: dict[Hashable, int]

    def refit_windows(self, count: int | None) -> Int[Tensor, "chosen window"]:
        """Windows for re-estimation: of `windows` first; None, or more than there are: all."""
        if count is not None and count < len(self.windows):
            return evenly(self.windows, count)
        left = len(self.others) if count is None else count - len(self.windows)
        return torch.cat([self.windows, evenly(self.others, left)])

    def refit_sequentially(self, count: int | None, compensation: Compensation) -> None:
        """Refits the present policy's blocks in turn, or reads what a run in any dtype has found.

        Args:
            count: number of windows (see `refit_windows`).
        """
        pruner, read = self.pruner, self.refit_windows(count)
        parts = pruner.kept, pruner.types, len(read)
        name = signature("sequential", self.name, type(compensation).__name__, *parts)
        folder = self.artefacts.folder / "sequential" / name
        refit_sequentially(pruner, read, self.first, compensation, folder)

    def expected_losses(self) -> Float[Tensor, "sites levels"]:
        """Expected increase of the dense model's loss for each site and number of kept units."""
        return self.observed(
            "sensitivity",
            signature("sensitivity", self.name),
            lambda windows: {"losses": sensitivity(self.pruner, windows, seed=0)},
        )["losses"]

    def changes(
        self, kept: Sequence[int], windows: int, times: int, cap: float
    ) -> Float[Tensor, "sites levels"]:
        """Estimated changes of a policy's loss (`ppf.pruning.loss_changes`), nats per token.

        Args:
            windows: number of windows in a set. Sets are disjoint random parts of the calibration
                part, drawn for this policy.
            times: largest number of sets.
            cap: nats (see `ppf.pruning.loss_changes`).
        """
        name = signature("changes", self.name, list(kept), windows, cap)
        text = self.windows
        order = torch.randperm(len(text), generator=torch.Generator().manual_seed(int(name, 16)))

        def make(chosen: Tensor) -> dict[str, Tensor]:
            return {"changes": loss_changes(self.pruner, kept, text[chosen], cap)}

        sets = order.split(windows)[:times]
        self.passes[name] = 3 * sum(map(len, sets)) * text.shape[1]
        found = [
            self._stored("changes", f"{name}-{number}", partial(make, chosen))["changes"]
            for number, chosen in enumerate(sets)
        ]
        weights = torch.tensor([float(len(chosen)) for chosen in sets])
        return (torch.stack(found) * (weights / weights.sum())[:, None, None]).sum(0)

    def observed(
        self, kind: str, name: str, observe: Callable[[Tensor], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """The tensors that `observe` returns for every fourth window, under the dense policy.

        Args:
            observe: differentiates the model on these windows.
        """
        windows = self.windows[::_STRIDE]
        self.passes[kind] = 3 * windows.numel()

        def make() -> dict[str, Tensor]:
            with self.pruner.at(self.pruner.space.dense.tolist()):
                return observe(windows)

        return self._stored(kind, name, make)

    def _stored(
        self, kind: str, name: str, make: Callable[[], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        return self.artefacts.get_or_make(
            kind,
            f"{name}.safetensors",
            read=read_tensors,
            make=lambda draft: write_tensors(draft, make()),
        )


@dataclass(frozen=True)
class UnitSites:
    """The sites of a space; their features are computed when they are first used.

    Args:
        calibration: of the dense model.
        retained: share of a site's importance in the k units that stay, [site, k].
        traits: of the dense model.
    """

    calibration: Calibration
    retained: Float[Tensor, "sites levels"]
    traits: Traits

    @property
    def space(self) -> Space:
        """The space, whose policies are numbers of kept units."""
        return self.calibration.pruner.space

    @cached_property
    def features(self) -> SiteFeatures:
        """Features of the sites."""
        losses = self.calibration.expected_losses()
        energy = torch.stack([self.traits.energy[site.name] for site in self.space.sites])
        errors = self.calibration.pruner.bank.errors
        return SiteFeatures(self.space, errors, self.retained, energy, losses, self.traits)
