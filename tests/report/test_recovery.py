import math
from typing import Any

import pytest

from ppf.recovery.results import Recovered, RecoveryScore
from ppf.report.page import Page
from ppf.report.recovery import recovery_metrics, recovery_page

REST: Any = {
    "title": "tiny",
    "command": "c",
    "measured_on": "Measured on the validation part of a text.",
    "settings": {"Loss": "kl"},
    "machine": {},
    "next_commands": {},
}


def score(pruned: float, recovered: float, ratio: float = 0.3) -> RecoveryScore:
    return RecoveryScore(ratio, *(math.log(x) for x in (20, pruned, recovered)))


def page(*scores: RecoveryScore) -> Page:
    return recovery_page(Recovered(scores, [], 300, 2.0, [(100, 3.4), (300, 3.2)]), **REST)


def test_a_recovery_is_told_in_words() -> None:
    assert page(score(40, 30)).headline == [
        "Perplexity 30.00 instead of 40.00 before the training (−25.0 %), at a pruning ratio of"
        " 30.0 %.",
        "The dense model has 20.00. Training recovered 41.5 % of the lost nats.",
        "Measured on the validation part of a text.",
    ]
    assert page(score(20, 18)).headline[1] == "The dense model has 20.00."


def test_several_ratios_get_a_row_each_and_a_mean() -> None:
    found = page(score(40, 20, 0.2), score(80, 80, 0.5))
    assert "by −29.3 %, as the geometric mean of 2 pruning ratios" in found.headline[0]
    table = found.tables["recovery"]
    assert table.texts[0] == ["20.0 %", "20.00", "40.00", "20.00", "−50.0 %", "100.0 %"]


def test_curve_ratios_and_test_part_are_shown_where_they_are_known() -> None:
    assert page(score(40, 30)).figures.keys() == {"curve"}
    assert page(score(40, 20, 0.2), score(80, 80, 0.5)).figures.keys() == {"curve", "ratios"}
    found = Recovered([score(40, 30)], [score(50, 45)], 300, 2.0, [])
    shown = recovery_page(found, **REST)
    assert not shown.figures
    assert shown.tables["test"].texts[0][2:4] == ["50.00", "45.00"]


def test_a_note_mentions_the_right_axis_only_if_there_is_one() -> None:
    notes = [
        part.note for score in (score(40, 30), score(20, 18)) for part in page(score).sections
        if part.name == "curve"
    ]  # fmt: skip
    assert ["right" in note for note in notes] == [True, False]


def test_loggers_get_its_perplexities() -> None:
    metrics = recovery_metrics([score(40, 30)])
    assert metrics["recovered/validation_perplexity"] == pytest.approx(30)
    assert metrics["won_back"] == pytest.approx(0.415, abs=1e-3)
    metrics = recovery_metrics([score(40, 30, 0.2), score(20, 18, 0.5)])
    assert metrics["pruned/validation_perplexity/0.2"] == pytest.approx(40)
    assert "won_back/0.5" not in metrics
    assert recovery_metrics([score(40, 30)], "test").keys() == {
        f"{name}/test_perplexity" for name in ("dense", "pruned", "recovered")
    }
