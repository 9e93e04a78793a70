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
        gate_up: of each expert, the rows of its gate and of its values.
        down: the last projections. If they have biases, these are the last column of each expert.
        activation: makes the inputs of the last projections of the outputs of `gate_up`.
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
        """The same function as a block of Qwen3-MoE, Mixtral, OLMoE or gpt-oss, which is used up.

        The new block has the memory of all its weights but those of the last projections, which are
        copied, as are all those of gpt-oss.
        """
        gate, experts = block.gate if hasattr(block, "gate") else block.router, block.experts
        given = {name: parameter.data for name, parameter in experts.named_parameters()}
        for name in given:  # the method `_apply_gate` below keeps the module
            delattr(experts, name)
        up, down = given["gate_up_proj"], given["down_proj"]
        if experts.is_transposed:
            up, down = up.mT, down.mT
        if experts.has_bias:
            down = torch.cat([down, given["down_proj_bias"][..., None]], 2)
        (count, rows, hidden), width = up.shape, down.shape[2]
        made = cls(
            nn.Linear(hidden, count, device="meta"),
            ExpertsUp(hidden, rows * count, device="meta"),
            ExpertsDown(width * count, hidden, width, device="meta"),
            experts._apply_gate,
            gate.top_k,
            normalised=getattr(gate, "norm_topk_prob", True),  # only some families have it
        )
        for linear, weight, bias in (
            (made.router, gate.weight.data, getattr(gate, "bias", None)),
            (made.gate_up, up.flatten(0, 1), given.get("gate_up_proj_bias")),
            (made.down, down.transpose(0, 1).flatten(1), None),
        ):
            linear.weight = nn.Parameter(weight)
            own = None if bias is None else nn.Parameter(bias.data.flatten())
            linear.register_parameter("bias", own)
        return made.train(block.training).requires_grad_(gate.weight.requires_grad)

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
        shares = weights[tokens, experts, None]
        active = self.activation(gate_up) * shares
        if active.shape[1] < self.down.width:
            active = torch.cat([active, shares.to(active.dtype)], 1)  # the bias is its column
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


class Scored(nn.Module):
    """`Experts` as a block that returns (output, scores), as in gpt-oss; there are no scores."""

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.experts = experts

    def forward(self, hidden_states: Tensor) -> tuple[Tensor, None]:
        """Returns the output, in the shape of the inputs: [..., hidden]."""
        return self.experts(hidden_states), None


def with_projections(layer: nn.Module, name: str) -> None:
    """Replaces a block of a decoder layer by `Experts`, if its experts are in one tensor.

    Args:
        name: "mlp"; "mlp.experts": the layer also expects scores of the block (see `Scored`).
    """
    outer, _, inner = name.partition(".")
    block: Any = getattr(layer, outer)
    if hasattr(block, "experts") and not isinstance(block, Scored):
        experts = Experts.of(block)
        setattr(layer, outer, Scored(experts) if inner else experts)


def _readers(chosen: Tensor) -> list[tuple[int, Tensor]]:
    """The experts that any token has chosen, each with the positions of its tokens.

    Args:
        chosen: [tokens, experts].
    """
    experts, tokens = chosen.T.nonzero(as_tuple=True)
    counts = chosen.sum(0).tolist()
    return [(i, part) for i, part in enumerate(tokens.split(counts)) if len(part)]
