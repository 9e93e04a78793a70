import math

import pytest
import torch

from ppf.predictor.protocol import Prediction
from ppf.predictor.scores import Scores

MEASURED = torch.tensor([3.0, 3.2, 3.4, 3.6, 9.0])
RATIO = torch.tensor([0.0, 0.1, 0.12, 0.15, 0.5])


def scored(predicted: torch.Tensor, std: float = 0.1) -> dict[str, float]:
    scores = Scores(bands=[0.0, 0.15, 0.3], dense_nll=3.0)
    half = len(MEASURED) // 2
    for part in (slice(half), slice(half, None)):
        mean = predicted[part]
        scores.update(Prediction(mean, torch.full_like(mean, std)), MEASURED[part], RATIO[part])
    return {name: float(score) for name, score in scores.compute().items()}


def test_errors_are_in_nats() -> None:
    scores = scored(MEASURED + torch.tensor([0.1, -0.1, 0.2, 0.0, 1.0]))
    assert scores["mae"] == pytest.approx(0.28)
    assert scores["median"] == pytest.approx(0.1)
    assert scores["mae_0_15"] == pytest.approx(0.4 / 3)


def test_nmse_leaves_catastrophic_policies_out() -> None:
    scores = scored(MEASURED + torch.tensor([0.1, 0.1, 0.1, 0.1, 100.0]))
    assert MEASURED[-1] - 3 > math.log(10)
    assert scores["nmse"] == pytest.approx(0.01 / 0.05, rel=1e-4)


def test_ranks_overall_and_within_bands() -> None:
    scores = scored(torch.tensor([3.4, 3.2, 3.0, 3.6, 9.0]))
    assert scores["kendall_0_15"] == pytest.approx(-1)
    assert scores["spearman_0_15"] == pytest.approx(-1, abs=1e-4)
    assert scores["kendall"] == pytest.approx(0.4)


def test_regret_is_the_price_of_a_wrong_first_place() -> None:
    scores = scored(torch.tensor([3.4, 3.1, 3.5, 3.6, 9.0]))
    assert scores["regret"] == scores["regret_0_15"] == pytest.approx(0.2)


def test_coverage_counts_the_ninety_percent_interval() -> None:
    off = torch.tensor([0.1, 0.15, 0.17, 0.3, 0.0])
    assert scored(MEASURED + off)["coverage"] == pytest.approx(0.6)


def test_bands_with_too_few_rows_are_left_out() -> None:
    assert not [name for name in scored(MEASURED) if name.endswith("_15_30")]


def test_equal_measurements_have_no_rank() -> None:
    scores = Scores(bands=[0.0, 0.15], dense_nll=3.0)
    same = torch.full((5,), 3.0)
    scores.update(Prediction(same, same), same, RATIO)
    assert "kendall" not in scores.compute()
    assert scores.compute()["mae"] == 0
