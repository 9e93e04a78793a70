"""The chunked losses and their gradients against autograd on all logits."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from ppf.recovery.likeliest import Likeliest
from ppf.recovery.token_losses import Rows, mean_token_losses
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ppf.llm import OutputHead
from ppf.recovery import token_losses
from ppf.recovery.losses import KL, CrossEntropy

WIDTH, TOKENS = 12, 33


def rows(count: int, seed: int, *, bias: bool = False, cap: float | None = None) -> Rows:
    torch.manual_seed(seed)
    linear = nn.Linear(WIDTH, TOKENS, bias)
    linear.weight.data.normal_()
    return Rows(torch.randn(count, WIDTH, requires_grad=True), OutputHead(linear, cap))


def reference(student: Rows, teacher: Rows, targets: Tensor) -> tuple[Tensor, Tensor]:
    """KL and cross-entropy by their definitions, with all logits at once."""
    log_q = student.head(student.hidden).log_softmax(-1)
    p = teacher.head(teacher.hidden).softmax(-1).detach()
    return (p * (p.log() - log_q)).sum(-1).mean(), F.nll_loss(log_q, targets)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("count", [1, 8, 19])
def test_values_and_gradients_equal_the_definitions(
    monkeypatch: pytest.MonkeyPatch, bias: bool, cap: float | None, count: int
) -> None:
    for name, size in (("_ROWS", 8), ("_CACHED_ROWS", 3), ("_BLOCK", 7)):
        monkeypatch.setattr(token_losses, name, size)
    student, teacher = (rows(count, seed, bias=bias, cap=cap) for seed in (0, 1))
    targets = torch.randint(TOKENS, (count,))
    trained = [student.hidden, *student.head.linear.parameters()]
    kl, ce = reference(student, teacher, targets)
    expected = torch.autograd.grad(3 * (2 * kl + 0.5 * ce), trained)

    losses = {"kl": KL(2.0, 0), "ce": CrossEntropy(0.5)}
    total, each = mean_token_losses(losses, student, teacher, targets)
    torch.testing.assert_close(total, 2 * kl + 0.5 * ce)
    torch.testing.assert_close(torch.stack([each["kl"], each["ce"]]), torch.stack([kl, ce]))
    for found, wanted in zip(torch.autograd.grad(3 * total, trained), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_no_tensor_holds_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_losses, "_ROWS", 8)
    student, teacher = rows(64, 0), rows(64, 1)
    with _Shapes() as shapes:
        total, _ = mean_token_losses({"kl": KL(1.0, 0)}, student, teacher, torch.zeros(64).long())
        total.backward()
    assert (8, TOKENS) in shapes.seen and (64, TOKENS) not in shapes.seen


class _Shapes(TorchDispatchMode):
    """Notes the shapes of all tensors that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = list[tuple[int, ...]]()

    def __torch_dispatch__(self, function: Any, _: Any, given: Any = (), named: Any = None) -> Any:
        found = function(*given, **(named or {}))
        self.seen += [tuple(x.shape) for x in tree_leaves(found) if isinstance(x, Tensor)]
        return found


def test_frozen_weights_get_no_gradient() -> None:
    student, teacher = rows(9, 0, bias=True), rows(9, 1)
    student.head.linear.requires_grad_(False)
    total, _ = mean_token_losses({"kl": KL(1.0, 0)}, student, teacher, torch.zeros(9).long())
    total.backward()
    assert student.hidden.grad is not None and student.head.linear.weight.grad is None


def test_a_model_that_equals_its_teacher_has_no_divergence_and_no_gradient() -> None:
    student = rows(9, 0)
    same = Rows(student.hidden.detach(), student.head)
    total, _ = mean_token_losses({"kl": KL(1.0, 0)}, student, same, torch.zeros(9).long())
    total.backward()
    assert float(total.detach()) == pytest.approx(0, abs=1e-6)
    assert float(student.hidden.grad.abs().max()) < 1e-6


def top_k_divergence(student: Rows, teacher: Rows, few: int) -> Tensor:
    """By its definition: all tokens but the teacher's likeliest count as one."""
    p, q = (
        teacher.head(teacher.hidden).softmax(-1).detach(),
        student.head(student.hidden).softmax(-1),
    )
    tokens = p.topk(few).indices
    p, q = p.gather(-1, tokens), q.gather(-1, tokens)
    p, q = (torch.cat([x, 1 - x.sum(-1, keepdim=True)], -1) for x in (p, q))
    return (p * (p / q).log()).sum(-1).mean()


@pytest.mark.parametrize("stored", [False, True])
def test_likeliest_tokens_give_the_divergence_of_their_definition(stored: bool) -> None:
    student, teacher = rows(19, 0), rows(19, 1)
    trained = [student.hidden, *student.head.linear.parameters()]
    expected = top_k_divergence(student, teacher, 5)
    known: Rows | Likeliest = teacher
    if stored:
        known = Likeliest.of(teacher.head(teacher.hidden).detach().log_softmax(-1), 5)
    total, _ = mean_token_losses({"kl": KL(1.0, 5)}, student, known, torch.zeros(19).long())
    torch.testing.assert_close(total, expected)
    wanted = torch.autograd.grad(expected, trained)
    for found, slope in zip(torch.autograd.grad(total, trained), wanted, strict=True):
        torch.testing.assert_close(found, slope)


def test_all_tokens_as_likeliest_give_the_whole_divergence() -> None:
    student, teacher = rows(9, 0), rows(9, 1)
    zeros = torch.zeros(9).long()
    whole, part = (
        mean_token_losses({"kl": KL(1.0, k)}, student, teacher, zeros)[0] for k in (0, TOKENS)
    )
    torch.testing.assert_close(part, whole, atol=1e-5, rtol=1e-5)
