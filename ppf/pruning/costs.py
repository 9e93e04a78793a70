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
from ppf.ranges import Count
from ppf.records.values import NumberFormat
from ppf.space import Site
from ppf.space.sites import Price


class Cost(ABC):
    """Computes the prices of units, as integers.

    Attributes:
        measured: whether prices are measured on this machine; they are then stored as an artefact.
    """

    measured: ClassVar[bool] = False

    def prices(self, pruner: LivePruner) -> list[Price]:
        """The prices of the units of each site of the pruner's space."""
        sites, couplings = pruner.space.sites, pruner.lm.couplings
        pairs = zip(sites, pruner.lm.coupling_indices(sites), strict=True)
        return [self.price(pruner, site, couplings[i]) for site, i in pairs]

    @abstractmethod
    def price(self, pruner: LivePruner, site: Site, coupling: Coupling) -> Price:
        """The price of one unit of a site, which `coupling` describes.

        In a site of query heads: that of a query head, and of a KV group without any.
        """


class Params(Cost):
    """The number of parameters."""

    def price(self, pruner: LivePruner, site: Site, coupling: Coupling) -> Price:
        return site.price


@dataclass
class Flops(Cost):
    """Floating-point operations per token: two for each weight, and those of attention.

    Experts cost nothing, since a token uses as many of them when some are gone.

    Args:
        context: number of tokens in the context that attention reads.
    """

    context: Count

    def price(self, pruner: LivePruner, site: Site, coupling: Coupling) -> Price:
        if site.kind == "experts":
            return 0
        scores = 4 * self.context * coupling.columns if site.kind == "attention" else 0
        if site.heads:
            return 2 * site.params + scores // coupling.queries, 2 * site.shared
        return 2 * site.params + scores * site.atoms_per_unit


class KVCache(Cost):
    """Bytes per token in the KV cache, in the model's dtype; 0 for FFNs."""

    def price(self, pruner: LivePruner, site: Site, coupling: Coupling) -> Price:
        if site.kind != "attention":
            return 0
        # The rows of an attention atom's producers are queries, keys and values. The consumer has
        # as many columns as there are query rows, so the difference is keys and values.
        rows = sum(producer.rows for producer in coupling.producers) - coupling.columns
        group = rows * site.atoms_per_unit * pruner.lm.dtype.itemsize
        return (0, group) if site.heads else group


@dataclass
class Latency(Cost):
    """Nanoseconds per unit in a forward pass on this machine.

    For each kind, one decoder layer is timed with its site at several widths, from no unit to all
    units. A line through these times, by parameters, gives the prices of all sites of the kind.

    Args:
        batch: number of windows in the batch that is timed.
        window: number of tokens in a window.
    """

    measured: ClassVar[bool] = True
    batch: Count
    window: Count
    _slopes: dict[str, float] = field(default_factory=dict, init=False)

    def price(self, pruner: LivePruner, site: Site, coupling: Coupling) -> Price:
        if site.kind not in self._slopes:
            self._slopes[site.kind] = self._slope(pruner, site, coupling)
        slope = self._slopes[site.kind]
        head = max(round(slope * site.params), 1)
        return (head, round(slope * site.shared)) if site.heads else head

    @torch.inference_mode()
    def _slope(self, pruner: LivePruner, site: Site, coupling: Coupling) -> float:
        """Nanoseconds for each parameter."""
        check_window(self.window, pruner.lm.model.config, "the latency budget's cost.window")
        ids = torch.zeros(self.batch, self.window, dtype=torch.long, device=pruner.lm.device)
        dense, position = pruner.space.dense.tolist(), pruner.space.sites.index(site)
        widths = torch.linspace(0, site.units, min(_WIDTHS, site.units + 1)).round()
        with pruner.at(dense):
            calls = LayerCalls.record(pruner.lm, ids)
            run = partial(coupling.parent, calls.inputs, **calls.keywords[coupling.layer])

            def timed(kept: int) -> float:
                pruner.apply([*dense[:position], kept, *dense[position + 1 :]])
                return self._seconds(run)

            # All widths take turns, so that bursts of other work on the machine hit all alike.
            rounds = [[timed(k) for k in widths.int().tolist()] for _ in range(_REPEATS)]
        seconds = torch.tensor(rounds, dtype=torch.double).amin(0)
        params = torch.tensor(site.costs(site.price), dtype=torch.double)[widths.int()]
        centred = params - params.mean()
        return max(1e9 * float((centred * seconds).sum() / centred.square().sum()), 0.0)

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

    def price(self, pruner: LivePruner, site: Site, coupling: Coupling) -> Price:
        rows = sum(producer.rows * producer.linear.in_features for producer in coupling.producers)
        weights = rows + coupling.columns * coupling.consumer.out_features
        return weights * site.atoms_per_unit * BLOCK_BYTES["f16"] // BLOCK


_WIDTHS = 6  # widths at which `Latency` times a layer
_REPEATS = 9  # runs at each width, of which the fastest counts
