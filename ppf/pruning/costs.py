"""Costs of one unit of a site: parameters, FLOPs, bytes in the KV cache, or time."""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field

from ppf.llm import Coupling, LayerCalls
from ppf.llm.loading import check_window
from ppf.pruning.live import LivePruner
from ppf.pruning.rounding import BLOCK, BLOCK_BYTES
from ppf.ranges import Count, Several
from ppf.records.values import NumberFormat
from ppf.space import Site


class Cost(ABC):
    """Computes the prices of units, as integers.

    Attributes:
        measured: whether prices are measured on this machine; they are then stored as an artefact.
    """

    measured: ClassVar[bool] = False

    def prices(self, pruner: LivePruner) -> list[int]:
        """The price of one unit of each site of the pruner's space."""
        sites, couplings = pruner.space.sites, pruner.lm.couplings
        pairs = zip(sites, pruner.lm.coupling_indices(sites), strict=True)
        return [self.price(pruner, site, couplings[i]) for site, i in pairs]

    @abstractmethod
    def price(self, pruner: LivePruner, site: Site, coupling: Coupling) -> int:
        """The price of one unit of a site, which `coupling` describes."""


class Params(Cost):
    """The number of parameters."""

    def price(self, pruner: LivePruner, site: Site, coupling: Coupling) -> int:
        return site.params


@dataclass
class Flops(Cost):
    """Floating-point operations per token: two for each weight, and those of attention.

    Args:
        context: number of tokens in the context that attention reads.
    """

    context: Count

    def price(self, pruner: LivePruner, site: Site, coupling: Coupling) -> int:
        scores = 4 * self.context * coupling.columns if site.kind == "attention" else 0
        return 2 * site.params + scores * site.atoms_per_unit


class KVCache(Cost):
    """Bytes per token in the KV cache, in the model's dtype; 0 for FFNs."""

    def price(self, pruner: LivePruner, site: Site, coupling: Coupling) -> int:
        if site.kind != "attention":
            return 0
        # The rows of an attention atom's producers are queries, keys and values. The consumer has
        # as many columns as there are query rows, so the difference is keys and values.
        rows = sum(producer.rows for producer in coupling.producers) - coupling.columns
        return rows * site.atoms_per_unit * pruner.lm.dtype.itemsize


@dataclass
class Latency(Cost):
    """Nanoseconds per unit in a forward pass on this machine.

    For each kind, one decoder layer is timed with its site at several widths, from no unit to all
    units. The slope of a line through these times is the price of all sites of the kind.

    Args:
        batch: number of windows in the batch that is timed.
        window: number of tokens in a window.
        widths: number of widths at which the layer is timed.
        repeats: number of runs at each width; the fastest one counts.
    """

    measured: ClassVar[bool] = True
    batch: Count
    window: Count
    widths: Several
    repeats: Count
    _slopes: dict[str, int] = field(default_factory=dict, init=False)

    def price(self, pruner: LivePruner, site: Site, coupling: Coupling) -> int:
        if site.kind not in self._slopes:
            self._slopes[site.kind] = self._slope(pruner, site, coupling)
        return self._slopes[site.kind]

    @torch.inference_mode()
    def _slope(self, pruner: LivePruner, site: Site, coupling: Coupling) -> int:
        check_window(self.window, pruner.lm.model.config, "the latency budget's cost.window")
        ids = torch.zeros(self.batch, self.window, dtype=torch.long, device=pruner.lm.device)
        dense, position = pruner.space.dense.tolist(), pruner.space.sites.index(site)
        widths = torch.linspace(0, site.units, min(self.widths, site.units + 1)).round()
        with pruner.at(dense):
            calls = LayerCalls.record(pruner.lm, ids)
            run = partial(coupling.parent, calls.inputs, **calls.keywords[coupling.layer])

            def timed(kept: int) -> float:
                pruner.apply([*dense[:position], kept, *dense[position + 1 :]])
                return self._seconds(run)

            # All widths take turns, so that bursts of other work on the machine hit all alike.
            rounds = [[timed(k) for k in widths.int().tolist()] for _ in range(self.repeats)]
        seconds = torch.tensor(rounds, dtype=torch.double).amin(0)
        centred = widths.double() - widths.double().mean()
        slope = (centred * seconds).sum() / centred.square().sum()
        return max(round(1e9 * float(slope)), 1)

    def _seconds(self, run: Callable[[], Any]) -> float:
        _synchronise()
        start = time.perf_counter()
        run()
        _synchronise()
        return time.perf_counter() - start


def _synchronise() -> None:
    """Waits until the GPU has finished its work."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


@dataclass
class Bytes(Cost):
    """Bytes of the matrices in a GGUF file, in 16 bits. A search may also quantise them.

    Args:
        types: number formats that a policy may give to a site.
        prune: whether sites may lose units; False: they are only quantised.
    """

    types: Annotated[Sequence[NumberFormat], Field(min_length=1)]
    prune: bool

    def price(self, pruner: LivePruner, site: Site, coupling: Coupling) -> int:
        rows = sum(producer.rows * producer.linear.in_features for producer in coupling.producers)
        weights = rows + coupling.columns * coupling.consumer.out_features
        return weights * site.atoms_per_unit * BLOCK_BYTES["f16"] // BLOCK
