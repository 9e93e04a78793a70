"""The chunked losses and their gradients against autograd on all logits."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from ppf.llm import OutputHead
from ppf.recovery import losses
from ppf.recovery.losses import KL, CrossEntropy, Forward, weighted_sum
from tests.checkpoints import CHECKPOINTS, random_model, random_windows

WIDTH, TOKENS = 12, 33


def forward(count: int, seed: int, *, bias: bool = False, cap: float | None = None) -> Forward:
    """One window, in which `count` positions predict a next token."""
    torch.manual_seed(seed)
    linear = nn.Linear(WIDTH, TOKENS, bias)
    linear.weight.data.normal_()
    hidden = torch.randn(1, count + 1, WIDTH, requires_grad=True)
    return Forward(hidden, OutputHead(linear, cap), ids(count))


def ids(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(TOKENS, (1, count + 1), generator=generator)


def reference(student: Forward, teacher: Forward, read: Tensor) -> tuple[Tensor, Tensor]:
    """KL and cross-entropy by their definitions, with all logits at once."""
    log_q = student.head(student.hidden[0, :-1]).log_softmax(-1)
    p = teacher.head(teacher.hidden[0, :-1]).softmax(-1).detach()
    return (p * (p.log() - log_q)).sum(-1).mean(), F.nll_loss(log_q, read[0, 1:])


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("count", [1, 8, 19])
def test_values_and_gradients_equal_the_definitions(
    monkeypatch: pytest.MonkeyPatch, bias: bool, cap: float | None, count: int
) -> None:
    for name, size in (("_ROWS", 8), ("_CACHED_ROWS", 3), ("_BLOCK", 7)):
        monkeypatch.setattr(losses, name, size)
    student, teacher = (forward(count, seed, bias=bias, cap=cap) for seed in (0, 1))
    trained = [student.hidden, *student.head.linear.parameters()]
    kl, ce = reference(student, teacher, ids(count))
    expected = torch.autograd.grad(3 * (2 * kl + 0.5 * ce), trained)

    both = {"kl": KL(2.0), "ce": CrossEntropy(0.5)}
    total, each = weighted_sum(both, student, teacher)
    torch.testing.assert_close(total, 2 * kl + 0.5 * ce)
    torch.testing.assert_close(torch.stack([each["kl"], each["ce"]]), torch.stack([kl, ce]))
    for found, wanted in zip(torch.autograd.grad(3 * total, trained), expected, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("form", ["llama-biases", "opt-32-heads-tied"])
def test_a_models_own_cross_entropy_and_its_gradients(form: str) -> None:
    """transformers computes the same loss and the same gradients of all weights."""
    model, read = random_model(CHECKPOINTS[form]).model.requires_grad_(True), random_windows()
    wanted = model(read, labels=read, use_cache=False).loss
    expected = torch.autograd.grad(wanted, [*model.parameters()], allow_unused=True)
    student = Forward.of(model, read)
    total, _ = weighted_sum({"ce": CrossEntropy(1.0)}, student, None)
    torch.testing.assert_close(total, wanted)
    torch.testing.assert_close(student.nll(), wanted)
    found = torch.autograd.grad(total, [*model.parameters()], allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def test_marked_tokens_do_not_count() -> None:
    student, teacher = forward(9, 0), forward(9, 1)
    marked = torch.where(torch.arange(10) % 3 > 0, student.ids, ~student.ids)
    scored = (marked[0, 1:] >= 0).nonzero()[:, 0]
    both = {"kl": KL(1.0), "ce": CrossEntropy(1.0)}
    total, each = weighted_sum(both, student._replace(ids=marked), teacher._replace(ids=marked))
    p, log_q = (x.head(x.hidden[0, scored]).log_softmax(-1) for x in (teacher, student))
    kl = (p.exp() * (p - log_q)).sum(-1).mean()
    ce = F.nll_loss(log_q, student.ids[0, 1:][scored])
    torch.testing.assert_close(torch.stack([each["kl"], each["ce"]]), torch.stack([kl, ce]))
    torch.testing.assert_close(student._replace(ids=marked).nll(), ce)
    (gradient,) = torch.autograd.grad(total, student.hidden)
    assert gradient[0].any(1).nonzero()[:, 0].tolist() == scored.tolist()


def test_frozen_weights_get_no_gradient() -> None:
    student, teacher = forward(9, 0, bias=True), forward(9, 1)
    student.head.linear.requires_grad_(False)
    total, _ = weighted_sum({"kl": KL(1.0)}, student, teacher)
    total.backward()
    assert student.hidden.grad is not None and student.head.linear.weight.grad is None
