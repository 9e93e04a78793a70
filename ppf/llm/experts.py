"""Mixtures of experts as three projections. Exported models contain a copy of this file."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class ExpertsUp(nn.Linear):
    """The first projections of all experts, one expert's rows after another's."""

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:  # type: ignore[override]
        """The outputs of the experts that each token has chosen; zeros for all others.

        Args:
            x: [tokens, hidden].
            chosen: whether a token has chosen an expert, [tokens, experts].

        Returns:
            [tokens, rows of all experts].
        """
        experts = chosen.shape[1]
        outputs = x.new_zeros(len(x), experts, self.out_features // experts)
        weights = self.weight.unflatten(0, (experts, -1))
        biases = None if self.bias is None else self.bias.unflatten(0, (experts, -1))
        for expert, tokens in _readers(chosen):
            bias = None if biases is None else biases[expert]
            outputs[tokens, expert] = F.linear(x[tokens], weights[expert], bias).to(outputs.dtype)
        return outputs.flatten(1)


class ExpertsDown(nn.Linear):
    """The last projections of all experts, as one matrix, one expert's columns after another's.

    Args:
        inputs, outputs: columns of all experts, and rows.
        width: columns of one expert.
        **options: of `nn.Linear`.
    """

    def __init__(self, inputs: int, outputs: int, width: int, **options: Any) -> None:
        super().__init__(inputs, outputs, **options)
        self.width = width

    def forward(self, x: Tensor) -> Tensor:
        """The sum of the experts' outputs. Experts whose inputs are all zero are not multiplied.

        Args:
            x: [..., columns of all experts].

        Returns:
            [..., outputs].
        """
        inputs = x.flatten(0, -2).unflatten(1, (-1, self.width))
        outputs = inputs.new_zeros(len(inputs), self.out_features)
        weights = self.weight.unflatten(1, (-1, self.width))
        for expert, tokens in _readers((inputs != 0).any(2)):
            added = F.linear(inputs[tokens, expert], weights[:, expert])
            outputs.index_add_(0, tokens, added.to(outputs.dtype))  # autocast may change it
        outputs = outputs if self.bias is None else outputs + self.bias
        return outputs.view(*x.shape[:-1], -1)


class Experts(nn.Module):
    """An FFN of which each token uses the experts that its router gives the largest weights.

    It computes what the family's own block computes, but a token's weight of an expert multiplies
    the inputs of the expert's last projection, not its output. So the output is linear in them, and
    differs from the family's block by rounding only. If fewer experts are left than a token
    chooses, it uses all.

    Args:
        router: gives each expert a score.
        gate_up: of each expert, the rows of its gate and then as many of its values.
        down: the last projections.
        activation: of the gates.
        top_k: number of experts that a token chooses.
        normalised: whether the weights of the chosen experts are divided by their sum.

    Attributes:
        num_experts: number of experts that tokens choose from, the first ones. The inputs of the
            others are those that they would have if all could be chosen; their columns of `down`
            must be zero.
    """

    def __init__(
        self,
        router: nn.Linear,
        gate_up: ExpertsUp,
        down: ExpertsDown,
        activation: Callable[[Tensor], Tensor],
        top_k: int,
        *,
        normalised: bool,
    ) -> None:
        super().__init__()
        self.router, self.gate_up, self.down = router, gate_up, down
        self.activation, self.top_k, self.normalised = activation, top_k, normalised
        self.num_experts = router.out_features

    @classmethod
    def of(cls, block: Any) -> "Experts":
        """The same function as a block of Qwen3-MoE, Mixtral or OLMoE, which is used up.

        The new block has the memory of all its weights but those of the last projections, which are
        copied.
        """
        gate, experts = block.gate, block.experts
        count, hidden, width = experts.down_proj.shape
        down = experts.down_proj.data.permute(1, 0, 2).reshape(hidden, -1)
        made = cls(
            nn.Linear(hidden, count, bias=False, device="meta"),
            ExpertsUp(hidden, 2 * width * count, bias=False, device="meta"),
            ExpertsDown(width * count, hidden, width, bias=False, device="meta"),
            experts.act_fn,
            gate.top_k,
            normalised=getattr(gate, "norm_topk_prob", True),  # Mixtral has no such attribute
        )
        weights = gate.weight.data, experts.gate_up_proj.data.flatten(0, 1), down
        for linear, weight in zip((made.router, made.gate_up, made.down), weights, strict=True):
            linear.weight = nn.Parameter(weight, requires_grad=gate.weight.requires_grad)
        return made.train(block.training)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """Returns the output, in the shape of the inputs: [..., hidden]."""
        x = hidden_states.flatten(0, -2)
        scores = self.router(x)
        weights = self._weights(scores[:, : self.num_experts])
        if self.num_experts < scores.shape[1]:
            weights = torch.cat([weights, self._weights(scores)[:, self.num_experts :]], 1)
        chosen = weights > 0
        tokens, experts = chosen.nonzero(as_tuple=True)
        gate_up = self.gate_up(x, chosen).unflatten(1, (chosen.shape[1], -1))[tokens, experts]
        gate, up = gate_up.chunk(2, -1)
        active = self.activation(gate) * up * weights[tokens, experts, None]
        inputs = x.new_zeros(*chosen.shape, active.shape[1])
        inputs = inputs.index_put((tokens, experts), active.to(x.dtype))
        return self.down(inputs.flatten(1)).view_as(hidden_states)

    def _weights(self, scores: Tensor) -> Tensor:
        """The weight of each expert, 0 for those that a token does not choose."""
        shares = scores.softmax(-1, dtype=torch.float)
        largest, experts = shares.topk(min(self.top_k, shares.shape[1]), -1)
        if self.normalised:
            largest = largest / largest.sum(-1, keepdim=True)
        return torch.zeros_like(shares).scatter(1, experts, largest)


def with_projections(layer: nn.Module, name: str) -> None:
    """Replaces a block of a decoder layer by `Experts`, if its experts are in one tensor.

    Args:
        name: of the block.
    """
    block: Any = getattr(layer, name)
    if hasattr(block, "experts"):
        setattr(layer, name, Experts.of(block))


def _readers(chosen: Tensor) -> list[tuple[int, Tensor]]:
    """The experts that any token has chosen, each with the positions of its tokens.

    Args:
        chosen: [tokens, experts].
    """
    experts, tokens = chosen.T.nonzero(as_tuple=True)
    counts = chosen.sum(0).tolist()
    return [(i, part) for i, part in enumerate(tokens.split(counts)) if len(part)]
