"""Records the arguments of the decoder layers, so that layers can be run one by one."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

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
        """Records the arguments; no layer is run, and no weight of a layer is read."""
        inputs: list[Tensor] = []
        keywords: list[dict[str, Any]] = []

        def stand_in(states: Tensor, **named: Any) -> Tensor:
            inputs.append(states)
            keywords.append(named)
            return states

        layers = list(lm.adapter.layers(lm.model))
        own = [vars(layer).get("forward") for layer in layers]
        try:
            for layer in layers:
                layer.forward = stand_in
            lm.model.get_decoder()(ids, use_cache=False)
        finally:
            for layer, forward in zip(layers, own, strict=True):
                del layer.forward
                if forward:  # such as `ppf.llm.offload` sets
                    layer.forward = forward
        return cls(inputs[0], keywords)
