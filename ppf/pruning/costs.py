"""What one unit of a site costs: parameters, FLOPs, KV-cache bytes, time."""

import statistics
import time
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ppf.llm import Coupling
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
        pairs = zip(sites, pruner.lm.places(sites), strict=True)
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
    """Nanoseconds for a batch of windows on this machine, as the slope over a block's widths.

    One block of each kind is timed at several widths, from nothing to all of it, and stands for
    all of its kind.

    Args:
        batch: windows at a time.
        window: tokens.
        widths: at which a block is timed.
        repeats: runs at each width, of which the median counts.
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
        place = pruner.space.sites.index(site)
        widths = torch.linspace(0, site.units, min(self.widths, site.units + 1)).round()
        seconds = []
        with pruner.at(pruner.space.dense.tolist()):
            inputs, keywords = _called(pruner, coupling, ids)
            for kept in widths.int().tolist():
                policy = pruner.space.dense.tolist()
                policy[place] = kept
                pruner.apply(policy)
                seconds.append(self._seconds(_block(coupling), inputs, keywords))
        centred = widths.double() - widths.double().mean()
        slope = (centred * torch.tensor(seconds)).sum() / centred.square().sum()
        return max(round(1e9 * float(slope)), 1)

    def _seconds(self, block: nn.Module, inputs: Any, keywords: Any) -> float:
        block(*inputs, **keywords)
        return statistics.median(_timed(block, inputs, keywords) for _ in range(self.repeats))


def _block(coupling: Coupling) -> nn.Module:
    return getattr(coupling.parent, coupling.attribute)


def _called(
    pruner: LivePruner, coupling: Coupling, ids: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How the model calls a block."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def hook(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        calls.append((inputs, keywords))

    handle = _block(coupling).register_forward_pre_hook(hook, with_kwargs=True)
    try:
        pruner.lm.model(ids, use_cache=False, logits_to_keep=1)
    finally:
        handle.remove()
    return calls[0]


def _timed(block: nn.Module, inputs: Any, keywords: Any) -> float:
    _wait()
    start = time.perf_counter()
    block(*inputs, **keywords)
    _wait()
    return time.perf_counter() - start


def _wait() -> None:
    """The accelerator works on while Python does not wait for it."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
