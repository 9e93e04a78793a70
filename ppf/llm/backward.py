"""Differentiates a loss of a model, one decoder layer at a time."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ppf.llm.attention import fast_attention
from ppf.llm.calls import LayerCalls
from ppf.llm.head import output_head
from ppf.llm.loading import LanguageModel
from ppf.progress import track

LossFunction = Callable[[Float[Tensor, "window tokens"], Int[Tensor, " window"]], Float[Tensor, ""]]
"""Maps the logits (float32) and the tokens of one window to a loss."""

SMALL = 2**31  # bytes of a window's activations up to which no layer is run twice


def differentiate(
    lm: LanguageModel,
    windows: Int[Tensor, "windows window"],
    loss: LossFunction,
    label: str,
    hooks: Sequence[RemovableHandle] = (),
) -> None:
    """Computes the gradients of a loss of each window. The caller's hooks on modules see them.

    If the activations of one window are large, or the weights are offloaded, this is gradient
    checkpointing: the inputs of every layer are kept in host memory, and each layer is run again
    for its backward pass. So memory holds the activations of one layer and one window, and the
    weights of one layer. Hooks then see each layer twice, the first time without gradients.

    Args:
        loss: called once for each window, in their order.
        label: of the progress bar.
        hooks: hooks that watch the passes; they are removed at the end.
    """
    needed = activations(lm.adapter.layers(lm.model), windows.shape[1], lm.dtype)
    small = needed <= SMALL and not lm.offloaded
    try:
        with fast_attention(lm.model):
            (_at_once if small else _checkpointed)(lm, windows, loss, label)
    finally:
        for hook in hooks:
            hook.remove()


def activations(layers: nn.Module, window: int, dtype: torch.dtype) -> int:
    """About as many bytes as a forward pass through all layers keeps for the backward pass."""
    linear = [module for module in layers.modules() if isinstance(module, nn.Linear)]
    columns = sum(module.in_features + module.out_features for module in linear)
    return 2 * columns * window * dtype.itemsize  # as much again for all other modules


def _at_once(lm: LanguageModel, windows: Tensor, loss: LossFunction, label: str) -> None:
    for window in track(windows.to(lm.device), label):
        call = LayerCalls.record(lm, window[None])
        state = call.inputs.detach().requires_grad_()
        for layer, keywords in zip(lm.adapter.layers(lm.model), call.keywords, strict=True):
            state = layer(state, **keywords)
        _loss(lm, state, window, loss).backward()


def _checkpointed(lm: LanguageModel, windows: Tensor, loss: LossFunction, label: str) -> None:
    calls = [LayerCalls.record(lm, ids) for ids in windows.to(lm.device).split(1)]
    count = len(lm.adapter.layers(lm.model))
    states = [[call.inputs.cpu()] for call in calls]
    gradients: list[Tensor] = []
    for step in track(range(2 * count), label):
        index = min(step, 2 * count - 1 - step)
        with lm.resident(index) as layer:
            for number, call in enumerate(calls):
                entering = states[number][index].to(lm.device)
                if step < count:
                    with torch.no_grad():
                        states[number].append(layer(entering, **call.keywords[index]).cpu())
                    continue
                leaf = entering.detach().requires_grad_()
                layer(leaf, **call.keywords[index]).backward(gradients[number])
                assert leaf.grad is not None
                gradients[number] = leaf.grad
                states[number].pop()
        if step == count - 1:
            last = [kept.pop().to(lm.device) for kept in states]
            for state, window in zip(last, windows, strict=True):
                leaf = state.detach().requires_grad_()
                _loss(lm, leaf, window.to(lm.device), loss).backward()
                assert leaf.grad is not None
                gradients.append(leaf.grad)


def _loss(lm: LanguageModel, state: Tensor, window: Tensor, loss: LossFunction) -> Tensor:
    hidden = lm.adapter.final_norm(lm.model)(state)[0]
    return loss(output_head(lm.model)(hidden).float(), window)
