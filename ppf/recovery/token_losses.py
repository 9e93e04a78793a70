"""Losses of next-token distributions, without all logits in memory at once."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor

from ppf.llm import OutputHead
from ppf.ranges import Positive
from ppf.recovery.likeliest import Likeliest

_ROWS = 512  # positions whose logits are in memory at once
_CACHED_ROWS = 16  # of them, positions whose float32 logits fit the CPU cache
_BLOCK = 2048  # rows of the head's gradient that are added at once


class Rows(NamedTuple):
    """Positions of a text, as a model's head sees them."""

    hidden: Float[Tensor, "rows width"]
    head: OutputHead

    def logits(self) -> Callable[[slice], Float[Tensor, "some tokens"]]:
        """A function that computes the logits of some rows, in the number format of `hidden`."""
        linear, dtype = self.head.linear, self.hidden.dtype
        weight = linear.weight.to(dtype)
        bias = None if linear.bias is None else linear.bias.to(dtype)
        return lambda rows: self.head.capped(F.linear(self.hidden[rows], weight, bias))


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
        self,
        student: Float[Tensor, "rows tokens"],
        teacher: Float[Tensor, "rows tokens"] | Likeliest | None,
        targets: Int[Tensor, " rows"],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "rows tokens"]]:
        """The loss, summed over the rows, and its gradient with respect to the student's logits.

        Args:
            student: log-probabilities.
            teacher: log-probabilities of the dense model, of all tokens or of the most probable
                ones; None unless a loss reads them.
            targets: tokens that follow in the text.
        """


def mean_token_losses(
    losses: Mapping[str, TokenLoss],
    student: Rows,
    teacher: Rows | Likeliest | None,
    targets: Int[Tensor, " rows"],
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The weighted sum of the losses, with gradients, and each loss alone, in nats per token.

    The logits are computed for a few rows at a time, and their gradients in the same pass. So the
    backward pass neither stores nor recomputes logits.
    """
    if not losses:
        return student.hidden.new_zeros(()), {}
    linear = student.head.linear
    total, each = _TokenLosses.apply(
        student.hidden, linear.weight, linear.bias, student.head, teacher, targets, losses
    )
    return total, dict(zip(losses, each.unbind(), strict=True))


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        head: OutputHead,
        teacher: Rows | Likeliest | None,
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
        of_teacher = teacher.logits() if isinstance(teacher, Rows) else teacher and teacher.part
        with torch.autocast(device, enabled=False):
            for start in range(0, len(hidden), _ROWS):
                part = slice(start, start + _ROWS)
                states = hidden[part].to(dtype)
                logits = F.linear(states, matrix, vector)
                other = of_teacher(part) if of_teacher else None
                values += _to_slopes(logits, other, targets[part], head, losses)
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


def _to_slopes(
    logits: Float[Tensor, "rows tokens"],
    teacher: Float[Tensor, "rows tokens"] | Likeliest | None,
    targets: Int[Tensor, " rows"],
    head: OutputHead,
    losses: Mapping[str, TokenLoss],
) -> Float[Tensor, " losses"]:
    """Replaces logits by the gradient of the weighted sum with respect to them.

    Args:
        logits: of the student, before the head's cap.
        teacher: logits of the dense model, or its most probable tokens.

    Returns:
        Each loss, summed over the rows.
    """
    values = torch.zeros(len(losses), device=logits.device)
    step = _CACHED_ROWS if logits.device.type == "cpu" else _ROWS
    for start in range(0, len(logits), step):
        few = slice(start, start + step)
        capped = head.capped(logits[few].float())
        student = capped.log_softmax(-1)
        other = None if teacher is None else _distribution(teacher, few)
        slopes = []
        for i, loss in enumerate(losses.values()):
            value, slope = loss.of_rows(student, other, targets[few])
            values[i] += value
            slopes.append(slope.mul_(loss.weight))
        total = sum(slopes[1:], slopes[0])
        if head.cap is not None:
            total.mul_(1 - (capped / head.cap).square())
        logits[few] = total
    return values


def _distribution(
    teacher: Float[Tensor, "rows tokens"] | Likeliest, rows: slice
) -> Float[Tensor, "some tokens"] | Likeliest:
    """Log-probabilities in float32."""
    if isinstance(teacher, Likeliest):
        return teacher.part(rows)
    return teacher[rows].float().log_softmax(-1)


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
