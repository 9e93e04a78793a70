"""How a model calls its decoder layers: learned once, so that layers can be run one by one."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ppf.llm.loading import LanguageModel


@dataclass(frozen=True)
class LayerCalls:
    """The calls of all layers on some windows; masks and positions depend on no policy.

    Args:
        entered: states that enter the first layer.
        keywords: of each layer's call.
    """

    entered: Float[Tensor, "windows window hidden"]
    keywords: list[dict[str, Any]]

    @classmethod
    @torch.inference_mode()
    def record(cls, lm: LanguageModel, ids: Int[Tensor, "windows window"]) -> "LayerCalls":
        """Learns them from one run of the model."""
        entered: list[Tensor] = []
        keywords: list[dict[str, Any]] = []

        def hook(module: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Any]) -> None:
            entered.append(inputs[0])
            keywords.append(named)

        layers = lm.adapter.layers(lm.model)
        handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in layers]
        try:
            lm.model.get_decoder()(ids, use_cache=False)
        finally:
            for handle in handles:
                handle.remove()
        return cls(entered[0], keywords)
