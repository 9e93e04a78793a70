import math
from dataclasses import replace
from typing import Any

import pytest

from ppf.report.scores import Entry, LogPerplexity
from ppf.report.search import Accuracy, search_metrics
from tests.report.test_html import report  # noqa: F401  (a fixture)


@pytest.mark.parametrize(
    ("coverage", "held_out", "flagged"),
    [(0.77, 26, True), (0.85, 26, False), (0.85, 200, True), (0.9, 200, False), (0.5, 2, True)],
)
def test_a_coverage_that_chance_does_not_explain_is_flagged(
    coverage: float, held_out: int, flagged: bool
) -> None:
    rows = [0.0] * held_out
    said = Accuracy(rows, rows, rows, rows, {"test/coverage": coverage}, []).warning
    assert bool(said) == flagged
    if flagged:
        assert f"only {100 * coverage:.0f} % of {held_out} held-out policies" in said


def test_predictors_without_scores_have_nothing_to_flag() -> None:
    assert Accuracy([], [], [], [], {}, []).warning == ""


def test_loggers_get_every_policys_perplexities(report: Any) -> None:  # noqa: F811
    metrics = search_metrics(report)
    assert metrics["dense/perplexity"] == pytest.approx(math.exp(2.5))
    assert metrics["PPF/perplexity"] == pytest.approx(math.exp(3.0))
    assert metrics["PPF/predicted_perplexity"] == pytest.approx(math.exp(3.1))
    assert metrics["PPF/ratio"] == 0.375
    assert metrics["seconds/total"] == 68
    assert metrics["evaluations"] == 12


def test_a_dynamic_search_has_them_at_each_ratio(report: Any) -> None:  # noqa: F811
    rows = [
        Entry(
            "PPF", ratio, LogPerplexity(1.0), selection=LogPerplexity(2.0, std_error=0.1),
            parameters=9,
        )  # fmt: skip
        for ratio in (0.2, 0.35)
    ]
    metrics = search_metrics(replace(report, dynamic=True, entries=rows))
    assert metrics["PPF/perplexity/0.2"] == metrics["PPF/perplexity/0.35"] == pytest.approx(math.e)
    assert metrics["PPF/selection_perplexity/0.35"] == pytest.approx(math.e**2)
    assert metrics["PPF/selection_perplexity_error/0.2"] == pytest.approx(0.1 * math.e**2)
    assert "PPF/perplexity_error/0.2" not in metrics
    assert metrics["PPF/parameters/0.2"] == 9
