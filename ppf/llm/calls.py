"""Records the arguments of the decoder layers, so that layers can be run one by one."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ppf.llm.loading import LanguageModel
from ppf.llm.marked import tokens_of


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
        """Records the arguments; no layer is run, and no weight of a layer is read.

        Args:
            ids: tokens, which may be marked.
        """
        inputs: list[Tensor] = []
        keywords: list[dict[str, Any]] = []

        def stand_in(states: Tensor, **named: Any) -> Tensor:
            inputs.append(states)
            keywords.append(named)
            return states

        with ExitStack() as replaced:
            for layer in lm.adapter.layers(lm.model):
                replaced.enter_context(forward_replaced(layer, stand_in))
            lm.model.get_decoder()(tokens_of(ids), use_cache=False)
        return cls(inputs[0], keywords)


@contextmanager
def forward_replaced(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Calls of the module call `forward` instead."""
    own = vars(module).get("forward")  # such as `ppf.llm.offload` sets
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own:
            module.forward = own
