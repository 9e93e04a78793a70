import math

import pytest
import torch
from torch import Tensor
from torchmetrics.functional import kendall_rank_corrcoef

from ppf.predictor.scores import HeldOut, coverage_warning, scores, with_intervals

MEASURED = torch.tensor([3.0, 3.2, 3.4, 3.6, 9.0])
RATIO = torch.tensor([0.0, 0.1, 0.12, 0.15, 0.5])
BANDS = [0.0, 0.15, 0.3]


def held_out(predicted: Tensor, std: float = 0.1) -> HeldOut:
    rows = torch.arange(len(predicted))
    return HeldOut(predicted, torch.full_like(predicted, std), MEASURED, RATIO, rows)


def scored(predicted: Tensor) -> dict[str, float]:
    return scores(held_out(predicted), 3.0, BANDS)


def random_rows(count: int = 60, groups: int = 60) -> HeldOut:
    generator = torch.Generator().manual_seed(0)
    ratio = torch.rand(count, generator=generator) * 0.6
    measured, predicted = (
        (3 + ratio + 0.05 * torch.randn(count, generator=generator)).round(decimals=2)
        for _ in range(2)
    )
    group = torch.arange(count) % groups
    return HeldOut(predicted, torch.full_like(ratio, 0.05), measured, ratio, group)


def test_errors_are_in_nats() -> None:
    errors = torch.tensor([0.1, -0.1, 0.2, 0.0, 1.0])
    found = scored(MEASURED + errors)
    assert found["mae"] == pytest.approx(0.28)
    assert found["mae_0_15"] == pytest.approx(0.4 / 3)
    assert (found["policies"], found["policies_0_15"]) == (5, 3)


def test_nmse_leaves_catastrophic_policies_out() -> None:
    found = scored(MEASURED + torch.tensor([0.1, 0.1, 0.1, 0.1, 100.0]))
    assert MEASURED[-1] - 3 > math.log(10)
    assert found["nmse"] == pytest.approx(0.01 / 0.05, rel=1e-4)


def test_ranks_are_those_of_torchmetrics() -> None:
    rows = random_rows()
    found = scores(rows._replace(measured=rows.measured.double()), 3.0, [])
    predicted, measured = rows.predicted, rows.measured
    assert len(measured.unique()) < len(measured), "ties count too"
    assert found["kendall"] == pytest.approx(
        float(kendall_rank_corrcoef(predicted, measured)), abs=1e-5
    )
    alone = float(kendall_rank_corrcoef(rows.ratio, measured))
    assert found["ratio_alone"] == pytest.approx(alone, abs=1e-5)


def test_the_ratio_does_not_help_at_equal_ratio() -> None:
    ratio = torch.tensor([0.2, 0.205, 0.4, 0.405])
    measured = torch.tensor([3.0, 3.1, 4.0, 4.1])
    swapped = torch.tensor([3.1, 3.0, 4.1, 4.0])
    rows = HeldOut(swapped, ratio, measured, ratio, torch.arange(4))
    found = scores(rows, 3.0, [])
    assert found["equal_ratio"] == -1
    assert found["kendall"] > 0


def test_grouped_ranks_compare_rows_of_one_group() -> None:
    ratio, group = torch.full((4,), 0.3), torch.tensor([0, 0, 1, 1])
    measured = torch.tensor([3.0, 3.1, 2.8, 2.9])
    rows = HeldOut(torch.tensor([3.0, 3.1, 3.2, 3.3]), ratio, measured, ratio, group)
    assert scores(rows, 3.0, [], grouped=True)["equal_ratio"] == 1
    assert scores(rows, 3.0, [])["equal_ratio"] < 1


def test_coverage_counts_the_ninety_percent_interval() -> None:
    off = torch.tensor([0.1, 0.15, 0.17, 0.3, 5.0])  # the last policy is catastrophic
    found = scored(MEASURED + off)
    assert found["coverage"] == pytest.approx(0.5)
    assert (found["intervals"], found["policies"]) == (4, 5)


def test_equal_measurements_have_no_rank() -> None:
    same = torch.full((5,), 3.0)
    found = scores(HeldOut(same, same, same, RATIO, torch.arange(5)), 3.0, [])
    assert "kendall" not in found and found["mae"] == 0


def test_every_score_has_an_interval_around_it() -> None:
    found = with_intervals(random_rows(), 3.0, [0.0, 0.3])
    for name in ("kendall", "nmse", "mae", "coverage", "equal_ratio", "kendall_0_30"):
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"]
    assert "policies_low" not in found


def test_families_are_resampled_as_a_whole() -> None:
    rows = random_rows(15, 15)
    once = with_intervals(rows, 3.0, [])
    repeated = HeldOut(*(column.repeat(4) for column in rows))
    assert with_intervals(repeated, 3.0, [])["mae_high"] == pytest.approx(once["mae_high"])
    alone = repeated._replace(group=torch.arange(60))
    assert with_intervals(alone, 3.0, [])["mae_high"] < once["mae_high"]


@pytest.mark.parametrize(
    ("coverage", "count", "flagged"),
    [(0.77, 26, True), (0.85, 26, False), (0.85, 200, True), (0.9, 200, False), (0.5, 2, True)],
)
def test_a_coverage_that_chance_does_not_explain_is_flagged(
    coverage: float, count: int, flagged: bool
) -> None:
    said = coverage_warning({"coverage": coverage, "intervals": count}, "held-out policies")
    assert bool(said) == flagged
    if flagged:
        assert f"only {100 * coverage:.0f} % of {count} held-out policies" in said


def test_predictors_without_intervals_have_no_coverage() -> None:
    found = scores(held_out(MEASURED, std=0.0), 3.0, BANDS)
    assert "coverage" not in found and "nmse" in found
    assert not coverage_warning(found, "held-out policies")
