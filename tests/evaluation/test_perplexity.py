import math

import pytest
import torch

from ppf.evaluation import perplexity
from ppf.evaluation.perplexity import LogPerplexity, Mean, mean_nll, window_losses
from ppf.llm import LanguageModel
from tests.checkpoints import CHECKPOINTS, random_model, random_windows


@pytest.mark.parametrize(
    "name", ["mistral-sliding-window", "gemma3-groups-of-3-capped-logits-untied"]
)
def test_is_the_mean_loss_that_transformers_computes(name: str) -> None:
    lm, windows = random_model(CHECKPOINTS[name]), random_windows()
    losses = [float(lm.model(ids[None], labels=ids[None]).loss) for ids in windows]
    assert mean_nll(lm.model, windows, batch=4) == pytest.approx(sum(losses) / 4, abs=1e-5)


def test_a_mean_has_the_standard_error_of_its_windows(lm: LanguageModel) -> None:
    windows = random_windows()  # four of them
    each = torch.tensor([mean_nll(lm.model, ids[None], batch=1) for ids in windows])
    _, error = Mean.of(window_losses(lm.model, windows, batch=3))
    assert error == pytest.approx(float(each.std()) / 2, rel=1e-3)
    assert math.isnan(Mean.of(window_losses(lm.model, windows[:1], batch=1)).std_error)


def test_infinite_and_nan_losses_are_returned(lm: LanguageModel) -> None:
    lm.model.model.norm.weight.fill_(float("nan"))
    assert torch.tensor(mean_nll(lm.model, random_windows(), batch=4)).isnan()


def test_out_of_memory_halves_the_batch(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = mean_nll(lm.model, random_windows(), batch=4)
    score, sizes = perplexity._window_nll, []

    def small(model: torch.nn.Module, part: torch.Tensor) -> torch.Tensor:
        sizes.append(len(part))
        if len(part) > 1:
            raise torch.OutOfMemoryError
        return score(model, part)

    monkeypatch.setattr(perplexity, "_window_nll", small)
    assert mean_nll(lm.model, random_windows(), batch=4) == pytest.approx(expected, abs=1e-5)
    assert sizes == [4, 2, 1, 1, 1, 1]
    assert "Out of memory: starting again with 2 windows" in capsys.readouterr().out


def test_records_have_the_interval_of_a_prediction_and_null_for_what_is_not_finite() -> None:
    measured, predicted = LogPerplexity(3.0, std_error=0.05), LogPerplexity(math.log(20), 0.1)
    assert measured.record() == {"nll": 3.0, "perplexity": math.exp(3.0), "std_error": 0.05}
    ends = predicted.record()["interval_95"]
    assert ends == pytest.approx([20 * math.exp(-0.196), 20 * math.exp(0.196)])
    assert LogPerplexity(math.nan).record() == {"nll": None, "perplexity": None}
    assert LogPerplexity(1e4).record() == {"nll": 1e4, "perplexity": None}
    assert LogPerplexity(5.0, 1e4).record()["interval_95"] == [0.0, None]
