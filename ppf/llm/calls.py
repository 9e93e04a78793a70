"""Records the arguments of the decoder layers, so that layers can be run one by one."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ppf.llm.loading import LanguageModel


@dataclass(frozen=True)
class LayerCalls:
    """The arguments of all decoder layers on some windows.

    Masks and positions do not depend on the policy, so one record serves all policies.

    Args:
        inputs: hidden states that enter the first layer.
        keywords: keyword arguments of each layer.
    """

    inputs: Float[Tensor, "windows window hidden"]
    keywords: list[dict[str, Any]]

    @classmethod
    @torch.no_grad()
    def record(cls, lm: LanguageModel, ids: Int[Tensor, "windows window"]) -> "LayerCalls":
        """Runs the model once and records the arguments."""
        inputs: list[Tensor] = []
        keywords: list[dict[str, Any]] = []

        def hook(module: nn.Module, positional: tuple[Tensor, ...], named: dict[str, Any]) -> None:
            inputs.append(positional[0])
            keywords.append(named)

        layers = lm.adapter.layers(lm.model)
        handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
        try:
            lm.model.get_decoder()(ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return cls(inputs[0], keywords)


class _ReachedError(Exception):
    """Ends a forward pass in front of the first layer."""


@torch.no_grad()
def entering(
    lm: LanguageModel, ids: Int[Tensor, "windows window"]
) -> Float[Tensor, "windows window hidden"]:
    """The hidden states that enter the first layer; no layer is run."""
    states: list[Tensor] = []

    def hook(module: nn.Module, positional: tuple[Tensor, ...]) -> None:
        states.append(positional[0])
        raise _ReachedError

    handle = lm.adapter.layers(lm.model)[0].register_forward_pre_hook(hook)
    try:
        lm.model.get_decoder()(ids, use_cache=False)
    except _ReachedError:
        pass
    finally:
        handle.remove()
    return states[0]
