"""Losses of recovery training, the options of `loss=`."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from ppf.llm import OutputHead, output_head, summed_nll
from ppf.ranges import Natural, Positive
from ppf.recovery.computing import call_rounded
from ppf.recovery.likeliest import Likeliest, top_divergence
from ppf.recovery.token_losses import Rows, TokenLoss, mean_token_losses


class Forward(NamedTuple):
    """What a model computes for some windows.

    Args:
        hidden: last hidden states.
        stream: hidden states before each layer, and the last ones after the model's final norm;
            empty: not requested.
        head: computes logits from `hidden`.
    """

    hidden: Float[Tensor, "windows window width"]
    stream: Sequence[Float[Tensor, "windows window width"]]
    head: OutputHead

    @classmethod
    def of(
        cls, model: PreTrainedModel, ids: Int[Tensor, "windows window"], *, stream: bool
    ) -> "Forward":
        """Runs a model, without its head."""
        done = call_rounded(model.get_decoder(), ids, use_cache=False, output_hidden_states=stream)
        return cls(done.last_hidden_state, done.hidden_states or (), output_head(model))

    @property
    def predicting(self) -> Rows:
        """The positions that predict a next token, of all windows."""
        return Rows(self.hidden[:, :-1].flatten(0, 1), self.head)

    def nll(self, ids: Int[Tensor, "windows window"]) -> Float[Tensor, ""]:
        """Mean negative log-likelihood of the windows, nats per token, on the model's device."""
        summed = summed_nll(self.head, self.hidden, ids)
        return (summed / ids[:, 1:].numel()).float().to(ids.device)


class KL(TokenLoss):
    """Forward KL divergence from the dense model's next-token distribution, nats per token.

    Args:
        weight: as for `TokenLoss`.
        top_k: most probable tokens of the dense model that are compared; all others together count
            as one more token. 0: all tokens are compared.
    """

    reads_teacher: ClassVar[bool] = True

    def __init__(self, weight: Positive, top_k: Natural) -> None:
        super().__init__(weight)
        self.top_k = top_k

    def of_rows(
        self,
        student: Float[Tensor, "rows tokens"],
        teacher: Float[Tensor, "rows tokens"] | Likeliest | None,
        targets: Int[Tensor, " rows"],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "rows tokens"]]:
        assert teacher is not None
        if isinstance(teacher, Likeliest):
            return top_divergence(student, teacher)
        if self.top_k:
            return top_divergence(student, Likeliest.of(teacher, self.top_k))
        probabilities = teacher.exp()
        divergence = torch.linalg.vecdot(probabilities, teacher - student).sum()
        return divergence, student.exp().sub_(probabilities)


class CrossEntropy(TokenLoss):
    """Negative log-likelihood of the text's next tokens, nats per token."""

    reads_teacher: ClassVar[bool] = False

    def of_rows(
        self,
        student: Float[Tensor, "rows tokens"],
        teacher: Float[Tensor, "rows tokens"] | Likeliest | None,
        targets: Int[Tensor, " rows"],
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "rows tokens"]]:
        chosen = targets[:, None]
        gradient = student.exp()
        gradient.scatter_add_(1, chosen, -torch.ones_like(chosen, dtype=gradient.dtype))
        return -student.gather(1, chosen).sum(), gradient


class StreamLoss(ABC):
    """A loss of residual streams.

    Args:
        weight: factor in the weighted sum.
    """

    reads_teacher: ClassVar[bool] = True

    def __init__(self, weight: Positive) -> None:
        self.weight = weight

    @abstractmethod
    def of_streams(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Float[Tensor, ""]:
        """The loss between the hidden states of two models, as in `Forward.stream`."""


class HiddenStates(StreamLoss):
    """The `distance` of the hidden states, mean over all inputs of layers and the final states."""

    def of_streams(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Float[Tensor, ""]:
        return torch.stack([distance(s, t) for s, t in zip(student, teacher, strict=True)]).mean()


RecoveryLoss = TokenLoss | StreamLoss


def distance(
    student: Float[Tensor, "windows window width"], teacher: Float[Tensor, "windows window width"]
) -> Float[Tensor, ""]:
    """Relative squared distance from the dense model's states, mean over tokens."""
    goal = teacher.float()
    squares = (student.float() - goal).square().sum(-1)
    return (squares / goal.square().sum(-1)).mean()


def need_teacher(losses: Mapping[str, RecoveryLoss]) -> bool:
    """Whether a loss compares with the dense model."""
    return any(loss.reads_teacher for loss in losses.values())


def likeliest_needed(losses: Mapping[str, RecoveryLoss]) -> int:
    """How many of the dense model's most probable tokens the losses need, if they need only these.

    0 if no loss compares with the dense model, or if a loss needs the model itself.
    """
    readers = [x for x in losses.values() if x.reads_teacher]
    return readers[0].top_k if len(readers) == 1 and isinstance(readers[0], KL) else 0


def need_stream(losses: Mapping[str, RecoveryLoss]) -> bool:
    """Whether a loss compares residual streams."""
    return any(isinstance(loss, StreamLoss) for loss in losses.values())


def weighted_sum(
    losses: Mapping[str, RecoveryLoss],
    student: Forward,
    teacher: Forward | Likeliest | None,
    ids: Int[Tensor, "windows window"],
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The weighted sum of the losses, with gradients, and each loss alone, without gradients.

    Args:
        teacher: None if no loss needs it.
    """
    of_tokens = {n: loss for n, loss in losses.items() if isinstance(loss, TokenLoss)}
    of_streams = {n: loss for n, loss in losses.items() if isinstance(loss, StreamLoss)}
    rows = teacher.predicting if isinstance(teacher, Forward) else teacher
    targets = ids[:, 1:].flatten()
    total, each = mean_token_losses(of_tokens, student.predicting, rows, targets)
    for name, loss in of_streams.items():
        assert isinstance(teacher, Forward)
        value = loss.of_streams(student.stream, teacher.stream)
        total, each[name] = total + loss.weight * value, value.detach()
    return total, each
