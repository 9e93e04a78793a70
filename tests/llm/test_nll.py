"""`window_nll`, which computes every label and every perplexity."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ppf.errors import PPFError
from ppf.llm import OutputHead, check_head, nll, window_nll
from ppf.llm.nll import draw, slopes
from tests.checkpoints import CHECKPOINTS, each, random_model, random_windows

ROWS, VOCABULARY, WIDTH = 8, 16, 12


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nll, "_ROWS", ROWS)
    monkeypatch.setattr(nll, "_VOCABULARY", VOCABULARY)
    monkeypatch.setattr(nll, "_WHOLE", ROWS)


def reference(head: OutputHead, hidden: Tensor, ids: Tensor) -> float:
    """The definition, in float64 and without blocks."""
    bias = None if head.linear.bias is None else head.linear.bias.double()
    logits = nn.functional.linear(hidden.double(), head.linear.weight.double(), bias)
    if head.cap is not None:
        logits = head.cap * (logits / head.cap).tanh()
    log_probs = logits.log_softmax(-1)[:, :-1].flatten(0, 1)
    return float(-log_probs.gather(1, ids[:, 1:].reshape(-1, 1)).sum())


def drawn(
    rows: int, tokens: int, *, bias: bool = False, cap: float | None = None, windows: int = 1
) -> tuple[OutputHead, Tensor, Tensor]:
    """A head, hidden states and ids; each window has `rows` scored tokens."""
    torch.manual_seed(0)
    linear = nn.Linear(WIDTH, tokens, bias).requires_grad_(False)
    linear.weight.normal_()
    hidden = torch.randn(windows, rows + 1, WIDTH)
    return OutputHead(linear, cap), hidden, torch.randint(tokens, (windows, rows + 1))


def check(*drawing: int, **more: Any) -> None:
    head, hidden, ids = drawn(*drawing, **more)
    found, expected = float(window_nll(head, hidden, ids).sum()), reference(head, hidden, ids)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-5), (drawing, more)


def test_equals_the_definition_at_block_edges() -> None:
    edges = [(k, d) for k in (1, 2) for d in (-1, 0, 1)]
    counts = [1, *(k * ROWS + d for k, d in edges)], [2, *(k * VOCABULARY + d for k, d in edges)]
    for rows, tokens in product(*counts):
        check(rows, tokens)
    for bias, cap in product((False, True), (None, 2.0)):
        check(ROWS + 3, VOCABULARY + 3, bias=bias, cap=cap, windows=2)


@pytest.mark.parametrize(("bias", "cap"), [(False, None), (True, 2.0)])
def test_slopes_are_the_gradient_of_the_cross_entropy(bias: bool, cap: float | None) -> None:
    head, states, ids = drawn(2 * ROWS + 3, VOCABULARY, bias=bias, cap=cap)
    hidden, seeded = states[0].requires_grad_(), torch.Generator()
    logits = head(hidden)
    rows = logits.detach().softmax(-1).split(ROWS)  # numbers are drawn for a block at a time
    drawn_tokens = torch.cat([draw(some, seeded) for some in rows])[:, 0]
    marked = torch.where(torch.arange(len(ids[0])) % 3 > 0, ids[0], ~ids[0])
    for tokens, generator in ((ids[0], None), (drawn_tokens, torch.Generator())):
        losses = nn.functional.cross_entropy(logits, tokens, reduction="none")
        for targets in (ids[0], marked):
            loss = (losses * (targets >= 0)).sum()
            expected = torch.autograd.grad(loss, hidden, retain_graph=True)
            generator = generator and torch.Generator()
            torch.testing.assert_close((slopes(head, hidden, targets, generator),), expected)


def test_marked_tokens_are_not_scored() -> None:
    head, hidden, ids = drawn(9, VOCABULARY, windows=2)
    rows = head(hidden[:, :-1]).log_softmax(-1).gather(2, ids[:, 1:, None])[..., 0]
    marked = torch.where(torch.arange(ids.shape[1]) % 3 > 0, ids, ~ids)
    expected = -(rows * (marked[:, 1:] >= 0)).sum(1).double()
    torch.testing.assert_close(window_nll(head, hidden, marked), expected, check_dtype=False)


def test_bfloat16_rounds_only_the_logits() -> None:
    head, hidden, ids = drawn(ROWS + 3, VOCABULARY + 3, windows=2)
    head.linear.to(torch.bfloat16)
    hidden, targets = hidden.to(torch.bfloat16), ids[:, 1:].flatten()
    rounded = head(hidden).double()[:, :-1].flatten(0, 1).logsumexp(1).sum()
    exact = hidden.double()[:, :-1].flatten(0, 1) * head.linear.weight.double()[targets]
    assert float(window_nll(head, hidden, ids).sum()) == pytest.approx(
        float(rounded - exact.sum()), rel=1e-6
    )


def test_equals_the_definition_with_the_real_block_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    assert nll._ROWS > ROWS
    check(nll._ROWS + 1, nll._VOCABULARY + 1)


@each("name")
def test_the_head_computes_the_models_own_logits(name: str) -> None:
    check_head(random_model(CHECKPOINTS[name]).model, random_windows())


def test_a_head_that_is_computed_otherwise_is_refused() -> None:
    model = random_model(CHECKPOINTS["llama-biases"]).model
    model.get_output_embeddings().register_forward_hook(lambda head, given, logits: 0.8 * logits)
    with pytest.raises(PPFError, match="family 'llama' compute their logits in a way"):
        check_head(model, random_windows())
