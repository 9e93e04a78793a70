"""Differentiates the next-token loss of a model, one decoder layer at a time."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ppf.llm.attention import fast_attention
from ppf.llm.calls import LayerCalls
from ppf.llm.head import output_head
from ppf.llm.loading import LanguageModel
from ppf.llm.nll import slopes
from ppf.progress import track

SMALL = 2**31  # bytes of activations up to which no layer is run twice


def differentiate(
    lm: LanguageModel,
    windows: Int[Tensor, "windows window"],
    label: str,
    hooks: Sequence[RemovableHandle] = (),
    *,
    seed: int | None = None,
) -> None:
    """Computes the gradients of the summed next-token loss. The caller's hooks on modules see them.

    Marked tokens do not count (`ppf.llm.marked`).

    A batch has as many windows as `SMALL` allows. If the activations of one window are larger, or
    the weights are offloaded, this is gradient checkpointing: the inputs of every layer are kept in
    host memory, and each layer is run again for its backward pass. So memory holds the activations
    of one layer and one window, and the weights of one layer. Hooks then see each layer twice, the
    first time without gradients.

    Args:
        label: of the progress bar.
        hooks: hooks that watch the passes; they are removed at the end.
        seed: the loss is that of tokens that are drawn from the model's predictions with this seed;
            None: of the windows' tokens.
    """
    needed = activations(lm.adapter.layers(lm.model), windows.shape[1], lm.dtype)
    small = needed <= SMALL and not lm.offloaded
    batches = windows.to(lm.device).split(SMALL // needed if small else 1)
    generator = None if seed is None else torch.Generator(lm.device).manual_seed(seed)
    try:
        with fast_attention(lm.model):
            (_at_once if small else _checkpointed)(lm, batches, generator, label)
    finally:
        for hook in hooks:
            hook.remove()


def activations(layers: nn.Module, window: int, dtype: torch.dtype) -> int:
    """About as many bytes as a forward pass through all layers keeps for the backward pass."""
    linear = [module for module in layers.modules() if isinstance(module, nn.Linear)]
    columns = sum(module.in_features + module.out_features for module in linear)
    return 3 * columns * window * dtype.itemsize // 2  # half as much again for other modules


def _at_once(
    lm: LanguageModel, batches: Sequence[Tensor], generator: torch.Generator | None, label: str
) -> None:
    for ids in track(batches, label):
        call = LayerCalls.record(lm, ids)
        state = call.inputs.detach().requires_grad_()
        for layer, keywords in zip(lm.adapter.layers(lm.model), call.keywords, strict=True):
            state = layer(state, **keywords)
        _backward(lm, state, ids, generator)


def _checkpointed(
    lm: LanguageModel, batches: Sequence[Tensor], generator: torch.Generator | None, label: str
) -> None:
    calls = [LayerCalls.record(lm, ids) for ids in batches]
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
            for state, ids in zip(last, batches, strict=True):
                leaf = state.detach().requires_grad_()
                _backward(lm, leaf, ids, generator)
                assert leaf.grad is not None
                gradients.append(leaf.grad)


def _backward(
    lm: LanguageModel,
    state: Float[Tensor, "windows window width"],
    ids: Int[Tensor, "windows window"],
    generator: torch.Generator | None,
) -> None:
    """Runs the backward pass from what leaves the last layer."""
    hidden, head = lm.adapter.final_norm(lm.model)(state), output_head(lm.model)
    rows = hidden[:, :-1] if generator is None else hidden
    # The token after a window is drawn too.
    targets = (ids[:, 1:] if generator is None else nn.functional.pad(ids[:, 1:], (0, 1))).flatten()
    rows.backward(slopes(head, rows.flatten(0, 1), targets, generator).view_as(rows))
