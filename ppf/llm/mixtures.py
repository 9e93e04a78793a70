"""Mixtures of experts: Qwen3-MoE, Mixtral and OLMoE."""

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from ppf.llm.adapter import Coupling, Producer
from ppf.llm.experts import Experts, with_projections
from ppf.llm.llama import LlamaAdapter


class MixtureAdapter(LlamaAdapter):
    """Attention as in Llama; an FFN is a mixture of experts, or as in Llama.

    An atom of a mixture is one expert, with its row of the router. When a token's expert is gone,
    the token uses the next best one. Scores, compensation and gradients leave this out: in their
    eyes, the token uses one expert fewer.
    """

    model_types: ClassVar[tuple[str, ...]] = ("qwen3_moe", "mixtral")

    def mlp(self, index: int, layer: Any) -> Coupling:
        block = layer.mlp
        if not isinstance(block, Experts):
            return super().mlp(index, layer)
        width = block.down.width
        experts = block.down.in_features // width
        producers = Producer(block.router, 1), Producer(block.gate_up, 2 * width)
        place = index, "experts", experts, producers, block.down, width, layer, "mlp"
        return Coupling(*place, heads="num_experts")

    def keep_layers(self, config: Any, stay: Sequence[int]) -> None:
        super().keep_layers(config, stay)
        if hasattr(config, "mlp_only_layers"):
            own, step = config.mlp_only_layers, config.decoder_sparse_step
            dense = [new for new, old in enumerate(stay) if old in own or (old + 1) % step]
            config.mlp_only_layers, config.decoder_sparse_step = dense, 1

    def with_projections(self, model: PreTrainedModel) -> None:
        for layer in self.layers(model):
            with_projections(layer, "mlp")

    def published(self, model: PreTrainedModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        found = dict(tensors)
        for name, block in model.named_modules():
            if isinstance(block, Experts):
                width, hidden = block.down.width, block.down.out_features
                router, gate_up, down = (
                    found.pop(f"{name}.{part}.weight") for part in ("router", "gate_up", "down")
                )
                found[f"{name}.gate.weight"] = router
                found[f"{name}.experts.gate_up_proj"] = gate_up.view(-1, 2 * width, hidden)
                found[f"{name}.experts.down_proj"] = down.unflatten(1, (-1, width)).transpose(0, 1)
        return revert_weight_conversion(model, found)  # to one tensor for each expert


class OlmoeAdapter(MixtureAdapter):
    """OLMoE. Its attention has norms over all heads, so only its experts can be pruned."""

    model_types = ("olmoe",)
    experts = "num_experts"

    def couplings(self, model: PreTrainedModel) -> list[Coupling]:
        self.with_projections(model)
        return [self.mlp(index, layer) for index, layer in enumerate(self.layers(model))]
