import math

import pytest
import torch

from ppf.errors import PPFError
from ppf.evaluation import perplexity
from ppf.evaluation.perplexity import Piece, mean_nll, pieces_loss, pieces_nll, sliding
from ppf.llm import LanguageModel
from ppf.text.windows import evenly
from tests.checkpoints import CHECKPOINTS, random_model, random_windows


@pytest.fixture(
    params=[
        "llama-groups-of-3-tied",
        "mistral-sliding-window",
        "gemma3-groups-of-3-capped-logits-untied",
    ]
)
def lm(request: pytest.FixtureRequest) -> LanguageModel:
    return random_model(CHECKPOINTS[request.param])


def test_is_the_mean_loss_that_transformers_computes(lm: LanguageModel) -> None:
    windows = random_windows()
    losses = [float(lm.model(ids[None], labels=ids[None]).loss) for ids in windows]
    assert mean_nll(lm.model, windows, batch=4) == pytest.approx(sum(losses) / 4, abs=1e-5)


def test_a_mean_has_the_standard_error_of_its_windows(lm: LanguageModel) -> None:
    windows = random_windows()  # four of them
    each = torch.tensor([mean_nll(lm.model, ids[None], batch=1) for ids in windows])
    _, error = pieces_loss(lm.model, [Piece(windows, 1)], batch=3)
    assert error == pytest.approx(float(each.std()) / 2, rel=1e-3)
    assert math.isnan(pieces_loss(lm.model, [Piece(windows[:1], 1)], batch=1)[1])


def test_few_windows_are_taken_at_even_distances() -> None:
    windows = torch.arange(9)[:, None]
    assert evenly(windows, 3).flatten().tolist() == [0, 4, 8]
    assert torch.equal(evenly(windows, 20), windows)


def test_bfloat16_logits_are_summed_in_float32(lm: LanguageModel) -> None:
    expected = mean_nll(lm.model, random_windows(), batch=4)
    found = mean_nll(lm.model.to(torch.bfloat16), random_windows(), batch=4)
    assert found == pytest.approx(expected, rel=0.01)


def test_infinite_and_nan_losses_are_returned(lm: LanguageModel) -> None:
    lm.model.model.norm.weight.fill_(float("nan"))
    assert torch.tensor(mean_nll(lm.model, random_windows(), batch=4)).isnan()


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError(), RuntimeError("not enough memory: you tried to allocate")]
)
def test_out_of_memory_halves_the_batch(
    error: RuntimeError,
    lm: LanguageModel,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = mean_nll(lm.model, random_windows(), batch=4)
    score, sizes = perplexity._window_nll, []

    def small(model: torch.nn.Module, part: Piece) -> torch.Tensor:
        sizes.append(len(part.windows))
        if len(part.windows) > 1:
            raise error
        return score(model, part)

    monkeypatch.setattr(perplexity, "_window_nll", small)
    assert mean_nll(lm.model, random_windows(), batch=4) == pytest.approx(expected, abs=1e-5)
    assert sizes == [4, 2, 1, 1, 1, 1]
    assert "Out of memory: starting again with 2 windows" in capsys.readouterr().out


def guide(model: torch.nn.Module, tokens: torch.Tensor, window: int, stride: int) -> float:
    """Hugging Face's "Perplexity of fixed-length models", each loss weighted by what it covers."""
    losses, counts, end_before = [], [], 0
    for begin in range(0, len(tokens), stride):
        end = min(begin + window, len(tokens))
        ids, labels = tokens[None, begin:end], tokens[None, begin:end].clone()
        labels[:, : -(end - end_before)] = -100
        counts.append(int((labels[:, 1:] != -100).sum()))
        losses.append(float(model(ids, labels=labels).loss) if counts[-1] else 0.0)
        end_before = end
        if end == len(tokens):
            break
    return sum(x * n for x, n in zip(losses, counts, strict=True)) / sum(counts)


@pytest.mark.parametrize(("window", "stride"), [(24, 8), (24, 24), (95, 5), (200, 50)])
@pytest.mark.parametrize("batch", [1, 5])
def test_sliding_windows_score_as_hugging_faces_guide(
    lm: LanguageModel, window: int, stride: int, batch: int
) -> None:
    tokens = random_windows().flatten()  # 96 of them
    pieces = sliding(tokens, window=window, stride=stride)
    expected = guide(lm.model, tokens, window, stride)
    assert pieces_nll(lm.model, pieces, batch=batch) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("tokens", [1, 23, 24, 90])
@pytest.mark.parametrize(("window", "stride"), [(24, 8), (24, 23), (24, 24), (2, 1)])
def test_behind_a_leading_token_every_token_is_scored_once(
    tokens: int, window: int, stride: int
) -> None:
    pieces = sliding(torch.arange(tokens), window=window, stride=stride, leading=[-1])
    assert all((piece.windows[:, 0] == -1).all() for piece in pieces)
    assert all(piece.windows.shape[1] <= window for piece in pieces)
    scored = torch.cat([piece.windows[:, piece.first :].flatten() for piece in pieces])
    assert scored.sort().values.tolist() == list(range(tokens))


@pytest.mark.parametrize(
    ("tokens", "window", "stride"), [(1, 8, 8), (9, 1, 1), (9, 4, 5), (9, 4, 0)]
)
def test_windows_that_leave_tokens_out_are_refused(tokens: int, window: int, stride: int) -> None:
    with pytest.raises(PPFError, match="1 ≤ stride ≤ window"):
        sliding(torch.arange(tokens), window=window, stride=stride)
