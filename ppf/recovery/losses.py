"""Losses of recovery training, the options of `loss=`, without all logits in memory at once."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from ppf.llm import OutputHead, output_head, scored_tokens, tokens_of, window_nll
from ppf.ranges import Positive
from ppf.recovery.computing import call_rounded

Distributions = Float[Tensor, "rows tokens"]
"""Log-probabilities of next tokens, or a gradient with respect to their logits."""
_ROWS = 512  # positions whose logits are in memory at once
_CACHED_ROWS = 16  # of them, positions whose float32 logits fit the CPU cache
_BLOCK = 2048  # rows of the head's gradient that are added at once


class Forward(NamedTuple):
    """What a model computes for some windows.

    Args:
        hidden: last hidden states.
        head: computes logits from them.
        ids: marked tokens.
    """

    hidden: Float[Tensor, "windows window width"]
    head: OutputHead
    ids: Int[Tensor, "windows window"]

    @classmethod
    def of(cls, model: PreTrainedModel, ids: Int[Tensor, "windows window"]) -> "Forward":
        """Runs a model, without its head."""
        done = call_rounded(model.get_decoder(), tokens_of(ids), use_cache=False)
        return cls(done.last_hidden_state, output_head(model), ids)

    @property
    def predicting(self) -> Float[Tensor, "rows width"]:
        """The hidden states of all positions that predict a scored token."""
        rows, scored = self.hidden[:, :-1].flatten(0, 1), self.ids[:, 1:].flatten() >= 0
        return rows if scored.all() else rows[scored]

    @property
    def targets(self) -> Int[Tensor, " rows"]:
        """The scored tokens."""
        following = self.ids[:, 1:].flatten()
        return following[following >= 0]

    def nll(self) -> Float[Tensor, ""]:
        """Mean negative log-likelihood of the windows, nats per token, on the model's device."""
        summed = window_nll(self.head, self.hidden, self.ids).sum()
        return (summed / scored_tokens(self.ids)).float().to(self.ids.device)


class TokenLoss(ABC):
    """A loss of next-token distributions.

    Args:
        weight: factor in the weighted sum.

    Attributes:
        reads_teacher: whether the loss compares with the dense model.
    """

    reads_teacher: ClassVar[bool]

    def __init__(self, weight: Positive) -> None:
        self.weight = weight

    @abstractmethod
    def of_rows(
        self, student: Distributions, teacher: Distributions | None, targets: Int[Tensor, " rows"]
    ) -> tuple[Float[Tensor, ""], Distributions]:
        """The loss, summed over the rows, and its gradient with respect to the student's logits.

        Args:
            teacher: of the dense model; None unless a loss reads them.
            targets: tokens that follow in the text.
        """


class KL(TokenLoss):
    """Forward KL divergence from the dense model's next-token distribution, nats per token."""

    reads_teacher: ClassVar[bool] = True

    def of_rows(
        self, student: Distributions, teacher: Distributions | None, targets: Int[Tensor, " rows"]
    ) -> tuple[Float[Tensor, ""], Distributions]:
        assert teacher is not None
        probabilities = teacher.exp()
        divergence = torch.linalg.vecdot(probabilities, teacher - student).sum()
        return divergence, student.exp().sub_(probabilities)


class CrossEntropy(TokenLoss):
    """Negative log-likelihood of the text's next tokens, nats per token."""

    reads_teacher: ClassVar[bool] = False

    def of_rows(
        self, student: Distributions, teacher: Distributions | None, targets: Int[Tensor, " rows"]
    ) -> tuple[Float[Tensor, ""], Distributions]:
        chosen = targets[:, None]
        gradient = student.exp()
        gradient.scatter_add_(1, chosen, -torch.ones_like(chosen, dtype=gradient.dtype))
        return -student.gather(1, chosen).sum(), gradient


def weighted_sum(
    losses: Mapping[str, TokenLoss], student: Forward, teacher: Forward | None
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The weighted sum of the losses, with gradients, and each loss alone, in nats per token.

    The logits are computed for a few rows at a time, and their gradients in the same pass. So the
    backward pass neither stores nor recomputes logits.

    Args:
        teacher: None if no loss reads it.
    """
    head, targets = student.head, student.targets
    total, each = _WeightedSum.apply(
        student.predicting, head.linear.weight, head.linear.bias, head, teacher, targets, losses
    )
    return total, dict(zip(losses, each.unbind(), strict=True))


class _WeightedSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: OutputHead,
        teacher: Forward | None,
        targets: Tensor,
        losses: Mapping[str, TokenLoss],
    ) -> tuple[Tensor, Tensor]:
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if autocast else hidden.dtype
        matrix, vector = weight.to(dtype), None if bias is None else bias.to(dtype)
        gradients = [
            torch.zeros_like(of) if of is not None and needed else None
            for of, needed in zip((hidden, weight, bias), ctx.needs_input_grad, strict=False)
        ]
        values = hidden.new_zeros(len(losses), dtype=torch.float32)
        goals = teacher and _logits(teacher)
        with torch.autocast(device, enabled=False):
            for start in range(0, len(hidden), _ROWS):
                part = slice(start, start + _ROWS)
                states = hidden[part].to(dtype)
                logits = F.linear(states, matrix, vector)
                goal = goals(part) if goals else None
                values += _to_slopes(logits, goal, targets[part], head, losses)
                if gradients[0] is not None:
                    _add(gradients, part, logits, states, matrix)
        ctx.gradients = gradients
        values /= len(hidden)
        weights = values.new_tensor([loss.weight for loss in losses.values()])
        ctx.mark_non_differentiable(values)
        return (values * weights).sum(), values  # a product of matrices would be in 16 bits

    @staticmethod
    def backward(ctx: Any, slope: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # scaled in place: it runs once
        rows = len(gradients[0])
        scaled = [g if g is None else g.mul_((slope / rows).to(g.dtype)) for g in gradients]
        return (*scaled, None, None, None, None)


def _logits(model: Forward) -> Callable[[slice], Float[Tensor, "some tokens"]]:
    """A function that computes the logits of some rows, in the number format of `hidden`."""
    rows, linear = model.predicting, model.head.linear
    weight = linear.weight.to(rows.dtype)
    bias = None if linear.bias is None else linear.bias.to(rows.dtype)
    return lambda part: model.head.capped(F.linear(rows[part], weight, bias))


def _to_slopes(
    logits: Float[Tensor, "rows tokens"],
    teacher: Float[Tensor, "rows tokens"] | None,
    targets: Int[Tensor, " rows"],
    head: OutputHead,
    losses: Mapping[str, TokenLoss],
) -> Float[Tensor, " losses"]:
    """Replaces logits by the gradient of the weighted sum with respect to them.

    Args:
        logits: of the student, before the head's cap.
        teacher: logits of the dense model.

    Returns:
        Each loss, summed over the rows.
    """
    values = torch.zeros(len(losses), device=logits.device)
    step = _CACHED_ROWS if logits.device.type == "cpu" else _ROWS
    for start in range(0, len(logits), step):
        few = slice(start, start + step)
        capped = head.capped(logits[few].float())
        student = capped.log_softmax(-1)
        goal = None if teacher is None else teacher[few].float().log_softmax(-1)
        slopes = []
        for i, loss in enumerate(losses.values()):
            value, slope = loss.of_rows(student, goal, targets[few])
            values[i] += value
            slopes.append(slope.mul_(loss.weight))
        total = sum(slopes[1:], slopes[0])
        if head.cap is not None:
            total.mul_(1 - (capped / head.cap).square())
        logits[few] = total
    return values


def _add(
    gradients: list[Tensor | None], part: slice, slope: Tensor, states: Tensor, matrix: Tensor
) -> None:
    """Adds what some rows contribute to the gradients of hidden states, weight and bias."""
    of_hidden, of_weight, of_bias = gradients
    assert of_hidden is not None
    of_hidden[part] = slope @ matrix
    if of_weight is not None:
        product = slope.T @ states
        # The conversion to float32 takes place in the CPU cache.
        for rows, more in zip(of_weight.split(_BLOCK), product.split(_BLOCK), strict=True):
            rows += more.to(rows.dtype)
    if of_bias is not None:
        of_bias += slope.sum(0)
