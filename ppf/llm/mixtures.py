"""Mixtures of experts: Qwen3-MoE, Mixtral, OLMoE and gpt-oss."""

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

    Attributes:
        block: name of the block in a layer.
    """

    model_types: ClassVar[tuple[str, ...]] = ("qwen3_moe", "mixtral")
    block: ClassVar[str] = "mlp"

    def mlp(self, index: int, layer: Any) -> Coupling:
        block = layer.get_submodule(self.block)
        if not isinstance(block, Experts):
            return super().mlp(index, layer)
        width = block.down.width
        experts = block.down.in_features // width
        rows = block.gate_up.out_features // experts
        producers = Producer(block.router, 1), Producer(block.gate_up, rows)
        place = index, "experts", experts, producers, block.down, width, layer, self.block
        return Coupling(*place, heads="num_experts")

    def keep_layers(self, config: Any, stay: Sequence[int]) -> None:
        super().keep_layers(config, stay)
        if hasattr(config, "mlp_only_layers"):
            own, step = config.mlp_only_layers, config.decoder_sparse_step
            dense = [new for new, old in enumerate(stay) if old in own or (old + 1) % step]
            config.mlp_only_layers, config.decoder_sparse_step = dense, 1

    def with_projections(self, model: PreTrainedModel) -> None:
        for layer in self.layers(model):
            with_projections(layer, self.block)

    def published(self, model: PreTrainedModel, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        found = dict(tensors)
        for name, block in model.named_modules():
            if isinstance(block, Experts):
                router, gate_up, down = (
                    found.pop(f"{name}.{part}.weight") for part in ("router", "gate_up", "down")
                )
                gate_up = gate_up.unflatten(0, (len(router), -1))
                down = down.unflatten(1, (len(router), -1)).transpose(0, 1)
                self.publish(found, name, router, gate_up, down)
        return revert_weight_conversion(model, found)  # to one tensor for each expert

    def publish(
        self, found: dict[str, Tensor], name: str, router: Tensor, gate_up: Tensor, down: Tensor
    ) -> None:
        """Adds the weights of a block to the published tensors.

        Args:
            found: the tensors, by name.
            name: of the block.
            router: [experts, hidden].
            gate_up: [experts, rows, hidden].
            down: [experts, hidden, columns].
        """
        found[f"{name}.gate.weight"] = router
        found[f"{name}.experts.gate_up_proj"] = gate_up
        found[f"{name}.experts.down_proj"] = down


class OlmoeAdapter(MixtureAdapter):
    """OLMoE. Its attention has norms over all heads, so only its experts can be pruned."""

    model_types = ("olmoe",)
    experts = "num_experts"

    def couplings(self, model: PreTrainedModel) -> list[Coupling]:
        self.with_projections(model)
        return [self.mlp(index, layer) for index, layer in enumerate(self.layers(model))]


class GptOssAdapter(OlmoeAdapter):
    """gpt-oss. Its attention has a sink for each head, so only its experts can be pruned.

    All projections have biases. The last ones are a column of each expert, which reads its weight.
    """

    model_types = ("gpt_oss",)
    experts = "num_local_experts"
    block = "mlp.experts"

    def publish(
        self, found: dict[str, Tensor], name: str, router: Tensor, gate_up: Tensor, down: Tensor
    ) -> None:
        outer = name.removesuffix(".experts")
        found |= {
            f"{outer}.router.weight": router,
            f"{outer}.router.bias": found.pop(f"{name}.router.bias"),
            f"{name}.gate_up_proj": gate_up.mT,
            f"{name}.gate_up_proj_bias": found.pop(f"{name}.gate_up.bias").view(len(router), -1),
            f"{name}.down_proj": down[..., :-1].mT,
            f"{name}.down_proj_bias": down[..., -1],
        }
