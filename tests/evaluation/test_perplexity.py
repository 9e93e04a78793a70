import pytest
import torch

from ppf.evaluation import perplexity
from ppf.evaluation.perplexity import mean_nll
from ppf.labels import labeller
from ppf.llm import LanguageModel
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


@pytest.mark.parametrize("rows", [1, 10, 1000])
@pytest.mark.parametrize("batch", [1, 3, 9])
def test_does_not_depend_on_batch_or_chunk(
    lm: LanguageModel, batch: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = mean_nll(lm.model, random_windows(), batch=4)
    monkeypatch.setattr(labeller, "_HEAD_ROWS", rows)
    assert mean_nll(lm.model, random_windows(), batch=batch) == pytest.approx(expected, abs=1e-5)


def test_an_untrained_model_with_equal_logits_scores_the_vocabulary(lm: LanguageModel) -> None:
    lm.model.get_output_embeddings().weight.zero_()
    nats = float(torch.tensor(257.0).log())
    assert mean_nll(lm.model, random_windows(), batch=2) == pytest.approx(nats, abs=1e-5)


def test_bfloat16_logits_are_summed_in_float32(lm: LanguageModel) -> None:
    expected = mean_nll(lm.model, random_windows(), batch=4)
    found = mean_nll(lm.model.to(torch.bfloat16), random_windows(), batch=4)
    assert found == pytest.approx(expected, rel=0.01)


def test_what_is_not_finite_is_kept(lm: LanguageModel) -> None:
    lm.model.model.norm.weight.fill_(float("nan"))
    assert torch.tensor(mean_nll(lm.model, random_windows(), batch=4)).isnan()


def test_out_of_memory_halves_the_batch(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = mean_nll(lm.model, random_windows(), batch=4)
    score, sizes = perplexity._summed_nll, []

    def small(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
        sizes.append(len(ids))
        if len(ids) > 1:
            raise torch.OutOfMemoryError
        return score(model, ids)

    monkeypatch.setattr(perplexity, "_summed_nll", small)
    assert mean_nll(lm.model, random_windows(), batch=4) == pytest.approx(expected, abs=1e-5)
    assert sizes == [4, 2, 1, 1, 1, 1]
    assert "Out of memory: starting again with 2 windows" in capsys.readouterr().out
