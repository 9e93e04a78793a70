import math
from dataclasses import replace

import pytest

from ppf.report.scores import (
    Entry,
    LogPerplexity,
    decimal,
    duration,
    mebibytes,
    millions,
    percent,
    signed_percent,
    uniform_at,
)


def test_a_log_perplexity_is_measured_or_predicted() -> None:
    measured, predicted = LogPerplexity(math.log(20)), LogPerplexity(math.log(20), 0.1)
    assert (measured.known, measured.interval) == ("measured", None)
    assert predicted.known == "predicted"
    assert predicted.interval == pytest.approx((20 * math.exp(-0.196), 20 * math.exp(0.196)))
    assert str(measured) == "20.00"
    assert str(predicted) == "20.00 (16.44–24.33)"
    assert Entry("uniform", 0.3, measured, predicted).scores == [measured, predicted]
    assert Entry("uniform", 0.3, predicted=predicted).scores == [predicted]


def test_an_overflow_is_an_infinite_perplexity() -> None:
    assert LogPerplexity(1e4).perplexity == math.inf
    assert str(LogPerplexity(math.inf)) == "inf"
    assert str(LogPerplexity(math.nan)) == "nan"


def test_records_replace_numbers_that_are_not_finite_by_null() -> None:
    assert LogPerplexity(math.nan).record() == {"nll": None, "perplexity": None}
    assert LogPerplexity(1e4).record() == {"nll": 1e4, "perplexity": None}
    assert LogPerplexity(5.0, 1e4).record()["interval_95"] == [0.0, None]


def test_numbers_are_readable() -> None:
    shown = [decimal(x) for x in (1.5, 31.824, 278.36, 12345.6, 3.2e9)]
    assert shown == ["1.50", "31.82", "278.4", "12,346", "3.2e+09"]
    assert percent(0.30049) == "30.0 %"
    assert (signed_percent(-0.234), signed_percent(0.05)) == ("−23.4 %", "+5.0 %")
    assert (millions(134_515_008), millions(213_632)) == ("134.5 M", "213,632")
    assert mebibytes(3 * 2**19) == "1.5 MiB"
    times = [duration(x) for x in (4.21, 59.99, 185, 3600 * 2 + 600)]
    assert times == ["4.2 s", "1 min 00 s", "3 min 05 s", "2 h 10 min"]


def test_a_measurement_may_have_a_standard_error() -> None:
    score = LogPerplexity(math.log(20), std_error=0.05)
    assert score.known == "measured" and score.interval is None
    assert score.error == pytest.approx(1)
    assert score.record()["std_error"] == 0.05
    assert "std_error" not in LogPerplexity(3.0).record()


def test_records_name_what_is_known() -> None:
    entry = Entry("PPF", 0.3, LogPerplexity(3.0), selection=LogPerplexity(3.1))
    assert entry.record().keys() == {"policy", "ratio", "measured", "selection"}
    less = replace(entry, difference=LogPerplexity(-0.2, std_error=0.01))
    assert less.record()["against_uniform"] == {"nats": -0.2, "std_error": 0.01}


def test_uniform_is_looked_up_at_the_nearest_ratio() -> None:
    rows = [Entry("uniform", ratio, LogPerplexity(ratio)) for ratio in (0.2, 0.4)]
    assert uniform_at(0.35, [*rows, Entry("PPF", 0.35)]) == LogPerplexity(0.4)
    assert uniform_at(0.35, [Entry("uniform", 0.35)]) is None
