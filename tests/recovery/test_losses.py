"""Losses of residual streams, alone and beside those of tokens."""

import torch
from torch import nn

from ppf.llm import OutputHead
from ppf.recovery.losses import CrossEntropy, Forward, HiddenStates, weighted_sum


def test_hidden_states_add_their_weighted_mean_distance() -> None:
    head, ids = OutputHead(nn.Linear(2, 3, bias=False), None), torch.tensor([[0, 1]])

    def forward(*stream: list[list[float]]) -> Forward:
        states = [torch.tensor([tokens], requires_grad=True) for tokens in stream]
        return Forward(states[-1], states, head)

    first = [[3.0, 4.0], [0.0, 2.0]]
    teacher = forward(first, [[1.0, 0.0], [0.0, 2.0]])
    student = forward(first, [[1.0, 0.0], [0.0, 0.0]])  # one of four states is off, by its length
    tokens, hidden = {"ce": CrossEntropy(1.0)}, {"hidden": HiddenStates(2.0)}
    without, _ = weighted_sum(tokens, student, None, ids)
    total, each = weighted_sum(tokens | hidden, student, teacher, ids)
    assert each.keys() == {"ce", "hidden"} and float(each["hidden"]) == 0.25
    torch.testing.assert_close(total, without + 2 * 0.25)
    alone, _ = weighted_sum(hidden, student, teacher, ids)
    alone.backward()
    assert alone.item() == 0.5
    assert student.stream[-1].grad is not None and student.stream[-1].grad.any()
