"""Expected losses of pruning and rounding single sites, from gradients of the dense model."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ppf.llm import differentiate
from ppf.pruning.bank import widths
from ppf.pruning.live import LivePruner
from ppf.pruning.rounding import rounded
from ppf.pruning.sensitivity import NormBehind
from ppf.records.values import NumberFormat


@dataclass(frozen=True)
class RoundingLosses:
    """The expected losses of rounding at each site of a space.

    Args:
        losses: expected increase of the loss if one site keeps k units and its matrices are
            rounded, [site, type, k], in nats per token; short rows are padded with 0.
        noise: squared norm of what rounding changes in the site's output, relative to that of the
            output, [site, type].
    """

    losses: Float[Tensor, "sites types levels"]
    noise: Float[Tensor, "sites types"]


def rounding_sensitivity(
    pruner: LivePruner,
    windows: Int[Tensor, "windows window"],
    types: Sequence[NumberFormat],
    seed: int,
) -> RoundingLosses:
    """As `ppf.pruning.sensitivity`, for sites that are pruned and rounded at the same time.

    The change of a site's output is that of pruning plus that of rounding the dense model's
    matrices. The second one is a sum over atoms, of which only the kept ones count.

    Args:
        pruner, windows, seed: as for `sensitivity`.
        types: number formats of the matrices.
    """
    indices = pruner.lm.coupling_indices(pruner.space.sites)
    sites = [_Site(pruner, number, index, types) for number, index in enumerate(indices)]
    hooks = [hook for site in sites for hook in site.hooks()]
    differentiate(pruner.lm, windows, "Measuring what rounding costs", hooks, seed=seed)
    scored = int((windows >= 0).sum())  # see `ppf.llm.marked`
    losses = [site.squared.T.cpu() / (2 * scored) for site in sites]
    padded = nn.utils.rnn.pad_sequence(losses, True).transpose(1, 2)
    noise = torch.stack([(x.noise / x.energy.clamp_min(_SILENT)).cpu() for x in sites])
    return RoundingLosses(padded, noise)


_SILENT = 1e-30  # least energy, for a site without output


class _Site:
    """Sums over the tokens of the windows for one site."""

    def __init__(
        self, pruner: LivePruner, number: int, index: int, types: Sequence[NumberFormat]
    ) -> None:
        self.coupling, self.block = pruner.lm.couplings[index], pruner.blocks[index]
        self.levels, self.types = pruner.bank.levels[number], types
        self.widths = widths(pruner.space.sites[number], self.coupling)
        device = pruner.lm.device_of(self.coupling.layer)
        self.squared = torch.zeros(len(types), len(self.widths), device=device)
        self.noise = torch.zeros(len(types), device=device)
        self.energy = torch.zeros((), device=device)
        # Inputs of the consumer: without rounding first, then with each type of rounding.
        self.inputs: list[Tensor] = []
        self.norm, self.behind = pruner.lm.adapter.norm_behind(self.coupling), NormBehind()

    def hooks(self) -> Iterator[RemovableHandle]:
        yield self.coupling.consumer.register_forward_hook(self._after_consumer)
        yield self.block.register_forward_hook(self._after_block, with_kwargs=True)
        if self.norm is not None:
            yield self.norm.register_forward_hook(self.behind.hook)

    def _after_consumer(self, module: nn.Module, inputs: tuple[Tensor, ...], out: Tensor) -> None:
        if out.requires_grad:
            out.register_hook(self._add)
        if out.requires_grad or self.inputs:
            self.inputs.append(inputs[0].detach().flatten(0, -2))

    def _after_block(self, block: nn.Module, args: Any, keywords: Any, output: Any) -> None:
        """Runs the block again with rounded producers, for each type."""
        if not torch.is_grad_enabled():
            return
        linears = [producer.linear for producer in self.coupling.producers]
        weights = [linear.weight for linear in linears]
        for type in self.types:
            for linear, weight in zip(linears, weights, strict=True):
                linear.weight = nn.Parameter(rounded(weight, type), requires_grad=False)
            with torch.no_grad():
                block.forward(*args, **keywords)
        for linear, weight in zip(linears, weights, strict=True):
            linear.weight = weight

    @torch.no_grad()
    def _add(self, gradient: Tensor) -> None:
        gradient, (x, *others) = gradient.flatten(0, -2), self.inputs
        self.inputs = []
        weight = self.coupling.consumer.weight
        outputs = self.levels.along(gradient, x, weight, self.widths)
        pruning = outputs[:, -1:] - outputs
        whole, along = x @ weight.T, (gradient @ weight) * x
        self.energy += whole.float().square().sum()
        for number, (type, other) in enumerate(zip(self.types, others, strict=True)):
            close = rounded(weight, type)
            change = (along - (gradient @ close) * other).float()
            kept = nn.functional.pad(change.cumsum(1), (1, 0))[:, self.widths]
            changes = pruning + kept
            if self.norm is not None:
                changes[:, 0] = self.behind.emptied
            self.squared[number] += changes.square().sum(0)
            self.noise[number] += (whole - other @ close.T).float().square().sum()
