"""Expected losses of pruning single sites, from gradients of the dense model."""

from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ppf.progress import track
from ppf.pruning.bank import widths
from ppf.pruning.live import LivePruner


class _SiteGradients:
    """Sums (g · d)² over tokens for each level of one site (see `sensitivity`)."""

    def __init__(self, pruner: LivePruner, number: int, coupling: int) -> None:
        self.coupling = pruner.lm.couplings[coupling]
        self.levels = pruner.bank.levels[number]
        self.widths = widths(pruner.space.sites[number], self.coupling)
        self.squared = torch.zeros(len(self.widths), device=pruner.lm.device)

    def hook(self, consumer: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        output.register_hook(partial(self._add, inputs[0].detach()))

    def _add(self, x: Tensor, gradient: Tensor) -> None:
        x, gradient = x.flatten(0, -2), gradient.flatten(0, -2)
        outputs = self.levels.along(gradient, x, self.coupling.consumer.weight, self.widths)
        self.squared += (outputs[:, -1:] - outputs).square().sum(0)


def sensitivity(
    pruner: LivePruner, windows: Int[Tensor, "windows window"], seed: int
) -> Float[Tensor, "sites levels"]:
    """The expected increase of the loss if one site keeps k units and all others keep all.

    It is half the Fisher information in the direction d: ½ E[(g · d)²], averaged over tokens. d is
    the change of the consumer's output, and g the gradient of the loss with respect to this output.
    The loss is that of next tokens sampled from the model itself.

    Args:
        pruner: a pruner with the dense policy applied.
        windows: windows of the calibration part.
        seed: seed of the sampled tokens.

    Returns:
        [site, k], nats per token. Short rows are padded with 0.

    Source: the Fisher information as second-order model of the loss is from WoodFisher (arXiv
        2004.14340). Its use for whole levels is our own.
    """
    lm = pruner.lm
    indices = lm.coupling_indices(pruner.space.sites)
    sites = [_SiteGradients(pruner, number, index) for number, index in enumerate(indices)]
    hooks = [site.coupling.consumer.register_forward_hook(site.hook) for site in sites]
    embeddings = lm.model.get_input_embeddings()
    hooks.append(embeddings.register_forward_hook(lambda *call: call[2].requires_grad_()))
    generator = torch.Generator(lm.device).manual_seed(seed)
    try:
        for window in track(windows.to(lm.device).split(1), "Measuring sensitivities"):
            logits = lm.model(window, use_cache=False).logits[0].float()
            drawn = torch.multinomial(logits.detach().softmax(-1), 1, generator=generator)
            nn.functional.cross_entropy(logits, drawn[:, 0], reduction="sum").backward()
    finally:
        for hook in hooks:
            hook.remove()
    losses = [site.squared.cpu() / (2 * windows.numel()) for site in sites]
    return nn.utils.rnn.pad_sequence(losses, True)
