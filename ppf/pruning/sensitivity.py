"""What cuts of single sites should cost, from one differentiation of the dense model."""

from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ppf.progress import track
from ppf.pruning.bank import widths
from ppf.pruning.live import LivePruner


class _Watched:
    """One site: the squared change of the loss along what each level takes from its output."""

    def __init__(self, pruner: LivePruner, number: int, place: int) -> None:
        self.coupling = pruner.lm.couplings[place]
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
    """The expected loss of keeping k units at a site and all elsewhere, [site, k], nats per token.

    Half the Fisher information along the change d of the consumer's output, token by token:
    ½ E[(g · d)²], g being the gradient of the loss on next tokens that the model itself draws.
    Rows of narrow sites end in zeros.

    Args:
        pruner: at the dense policy.
        windows: of the calibration part.
        seed: of the drawn tokens.

    Source: the Fisher information as in Optimal Brain Compression's and WoodFisher's (arXiv
        2004.14340) second-order models; taking d for whole levels is ours.
    """
    lm = pruner.lm
    watched = [
        _Watched(pruner, i, p) for i, p in enumerate(lm.coupling_indices(pruner.space.sites))
    ]
    hooks = [site.coupling.consumer.register_forward_hook(site.hook) for site in watched]
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
    losses = [site.squared.cpu() / (2 * windows.numel()) for site in watched]
    return nn.utils.rnn.pad_sequence(losses, True)
