"""Expected losses of changing single sites, from gradients of the dense or the pruned model."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ppf.llm import differentiate
from ppf.pruning.bank import widths
from ppf.pruning.live import LivePruner

Expansion = Callable[[Float[Tensor, "tokens levels"]], Float[Tensor, "tokens levels"]]
"""Maps g · d of each token to an estimate of the change of the loss, nats."""


class NormBehind:
    """Computes what emptying a site changes, if a norm follows its consumer.

    The norm ignores the scale of its input. So the gradient in front of it is orthogonal to the
    input, and only the gradient behind it tells what the whole output is worth.

    Attributes:
        emptied: g · d of each token behind the norm, where d is the change to zero; of the latest
            backward pass.
    """

    emptied: Float[Tensor, " tokens"]

    def hook(self, norm: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(partial(self._keep, output.detach()))

    def _keep(self, output: Tensor, gradient: Tensor) -> None:
        self.emptied = -(gradient * output).float().flatten(0, -2).sum(1)


class _SiteGradients:
    """Sums the estimated changes of the loss over tokens, for each level of one site."""

    def __init__(
        self, pruner: LivePruner, number: int, coupling: int, present: int, expand: Expansion
    ) -> None:
        self.coupling = pruner.lm.couplings[coupling]
        self.order = pruner.bank.orders[coupling]
        self.weight = self.order.nest(pruner.dense_weight(coupling))
        self.levels = pruner.bank.levels[number]
        self.widths = widths(pruner.space.sites[number], self.coupling)
        self.present, self.expand = present, expand
        device = pruner.lm.device_of(self.coupling.layer)
        self.summed = torch.zeros(len(self.widths), device=device)
        self.norm, self.behind = pruner.lm.adapter.norm_behind(self.coupling), NormBehind()

    def hooks(self) -> Iterator[RemovableHandle]:
        yield self.coupling.consumer.register_forward_hook(self._hook)
        if self.norm is not None:
            yield self.norm.register_forward_hook(self.behind.hook)

    def _hook(self, consumer: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if output.requires_grad:
            output.register_hook(partial(self._add, inputs[0].detach()))

    def _add(self, x: Tensor, gradient: Tensor) -> None:
        x, gradient = self.order.nest(x.flatten(0, -2)), gradient.flatten(0, -2)
        weight = self.weight.to(x.device)
        outputs = self.levels.along(gradient, x, weight, self.widths)
        changes = outputs - outputs[:, self.present, None]
        if self.norm is not None and self.present:
            changes[:, 0] = self.behind.emptied
        elif self.norm is not None:  # its slope at zero is larger than at the dense output
            eps: Any = self.norm.eps
            changes *= (eps / ((x @ weight.T).float().square().mean(1) + eps)).sqrt()[:, None]
        self.summed += self.expand(changes).sum(0)


def sensitivity(
    pruner: LivePruner, windows: Int[Tensor, "windows window"], seed: int
) -> Float[Tensor, "sites levels"]:
    """The expected increase of the loss if one site keeps k units and all others keep all.

    It is half the Fisher information in the direction d: ½ E[(g · d)²], averaged over tokens. d is
    the change of the consumer's output, and g the gradient of the loss with respect to this output.
    The loss is that of next tokens sampled from the model itself.

    Args:
        pruner: a pruner with the dense policy applied.
        seed: seed of the sampled tokens.

    Returns:
        [site, k], nats per token. Short rows are padded with 0.

    Source: the Fisher information as a second-order model of the loss is from WoodFisher (arXiv
        2004.14340). Its use for whole levels is our own.
    """
    dense, title = pruner.space.dense.tolist(), "Measuring sensitivities"
    return _summed(pruner, dense, windows, lambda a: a.square() / 2, title, seed)


def loss_changes(
    pruner: LivePruner, kept: Sequence[int], windows: Int[Tensor, "windows window"], cap: float
) -> Float[Tensor, "sites levels"]:
    """The estimated change of the loss if one site of a pruned model keeps k units instead.

    Each token contributes a + ½ a² with a = g · d. d is the change of the consumer's output, and g
    the gradient of the loss of the true next tokens with respect to this output. The square is the
    empirical Fisher information. Far from the pruned model both terms are much too large for some
    tokens, so |a| is limited to a quarter of `cap`, and ½ a² to half of it.

    Args:
        pruner: applies policies; the dense policy is applied on return.
        kept: units that each site of the pruned model keeps.
        cap: see above, nats.

    Returns:
        [site, k], nats per token; 0 where k is the present number of units. Short rows are padded
        with 0.

    Source: our own; the empirical Fisher information is in WoodFisher (arXiv 2004.14340).
    """

    def expand(a: Tensor) -> Tensor:
        return a.clamp(-cap / 4, cap / 4) + (a.square() / 2).clamp(max=cap / 2)

    with pruner.padded(kept):
        return _summed(pruner, kept, windows, expand, "Differentiating the best policy")


def _summed(
    pruner: LivePruner,
    kept: Sequence[int],
    windows: Int[Tensor, "windows window"],
    expand: Expansion,
    title: str,
    seed: int | None = None,
) -> Float[Tensor, "sites levels"]:
    """Estimated changes of the loss per token, relative to the model with `kept` units."""
    lm = pruner.lm
    indices = lm.coupling_indices(pruner.space.sites)
    sites = [
        _SiteGradients(pruner, number, index, kept[number], expand)
        for number, index in enumerate(indices)
    ]
    hooks = [hook for site in sites for hook in site.hooks()]
    differentiate(lm, windows, title, hooks, seed=seed)
    scored = int((windows >= 0).sum())  # see `ppf.llm.marked`
    return nn.utils.rnn.pad_sequence([site.summed.cpu() / scored for site in sites], True)
