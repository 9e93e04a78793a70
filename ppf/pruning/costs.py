"""What one unit of a site costs: parameters, FLOPs, KV-cache bytes, time."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch

from ppf.llm import Coupling, LayerCalls
from ppf.pruning.live import LivePruner
from ppf.space import Site


class Cost(ABC):
    """Prices of units, in whole numbers.

    Attributes:
        measured: whether prices depend on the machine, so that they are kept once measured.
    """

    measured: ClassVar[bool] = False

    def prices(self, pruner: LivePruner) -> list[int]:
        """Of one unit, per site of the pruner's space."""
        sites, couplings = pruner.space.sites, pruner.lm.couplings
        pairs = zip(sites, pruner.lm.coupling_indices(sites), strict=True)
        return [self.price(pruner, site, couplings[i]) for site, i in pairs]

    @abstractmethod
    def price(self, pruner: LivePruner, site: Site, coupling: Coupling) -> int: ...


class Params(Cost):
    """Parameters."""

    def price(self, pruner: LivePruner, site: Site, coupling: Coupling) -> int:
        return site.params


class Flops(Cost):
    """Floating-point operations for one token: two a weight, and attention over the context.

    Args:
        context: tokens that attention looks back on.
    """

    def __init__(self, context: int) -> None:
        self.context = context

    def price(self, pruner: LivePruner, site: Site, coupling: Coupling) -> int:
        scores = 4 * self.context * coupling.columns if site.kind == "attention" else 0
        return 2 * site.params + scores * site.atoms_per_unit


class KVCache(Cost):
    """Bytes that a token takes in the KV cache, in the model's dtype; FFNs take none."""

    def price(self, pruner: LivePruner, site: Site, coupling: Coupling) -> int:
        if site.kind != "attention":
            return 0
        # An attention atom's producers give queries, keys and values; its consumer reads a value
        # for every query head, so it has as many columns as there are query rows.
        rows = sum(producer.rows for producer in coupling.producers) - coupling.columns
        return rows * site.atoms_per_unit * pruner.lm.dtype.itemsize


class Latency(Cost):
    """Nanoseconds for a batch of windows on this machine, as the slope over a site's widths.

    For each kind, one decoder layer is timed with that site at several widths, from nothing to all
    of it. Its slope stands for all sites of the kind.

    Args:
        batch: windows at a time.
        window: tokens.
        widths: at which the layer is timed.
        repeats: runs at each width, of which the fastest counts.
    """

    measured = True

    def __init__(self, batch: int, window: int, widths: int, repeats: int) -> None:
        self.batch, self.window, self.widths, self.repeats = batch, window, widths, repeats
        self._slopes: dict[str, int] = {}

    def price(self, pruner: LivePruner, site: Site, coupling: Coupling) -> int:
        if site.kind not in self._slopes:
            self._slopes[site.kind] = self._slope(pruner, site, coupling)
        return self._slopes[site.kind]

    @torch.inference_mode()
    def _slope(self, pruner: LivePruner, site: Site, coupling: Coupling) -> int:
        ids = torch.zeros(self.batch, self.window, dtype=torch.long, device=pruner.lm.device)
        dense, place = pruner.space.dense.tolist(), pruner.space.sites.index(site)
        widths = torch.linspace(0, site.units, min(self.widths, site.units + 1)).round()
        with pruner.at(dense):
            calls = LayerCalls.record(pruner.lm, ids)
            run = partial(coupling.parent, calls.inputs, **calls.keywords[coupling.layer])

            def timed(kept: int) -> float:
                pruner.apply([*dense[:place], kept, *dense[place + 1 :]])
                return self._seconds(run)

            # Other work on the machine comes in bursts: all widths take turns.
            rounds = [[timed(k) for k in widths.int().tolist()] for _ in range(self.repeats)]
        seconds = torch.tensor(rounds, dtype=torch.double).amin(0)
        centred = widths.double() - widths.double().mean()
        slope = (centred * seconds).sum() / centred.square().sum()
        return max(round(1e9 * float(slope)), 1)

    def _seconds(self, run: Callable[[], Any]) -> float:
        _wait()
        start = time.perf_counter()
        run()
        _wait()
        return time.perf_counter() - start


def _wait() -> None:
    """The accelerator works on while Python does not wait for it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
