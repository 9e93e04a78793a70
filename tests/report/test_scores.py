import math

import pytest

from ppf.report.scores import (
    LogPerplexity,
    decimal,
    duration,
    mebibytes,
    percent,
    signed_percent,
)


def test_a_log_perplexity_is_measured_or_predicted() -> None:
    measured, predicted = LogPerplexity(math.log(20)), LogPerplexity(math.log(20), 0.1)
    assert measured.interval is None and str(measured) == "20.00"
    assert predicted.interval == pytest.approx((20 * math.exp(-0.196), 20 * math.exp(0.196)))
    assert LogPerplexity(3.0, std_error=0.05).record()["std_error"] == 0.05
    assert "std_error" not in LogPerplexity(3.0).record()


def test_an_overflow_is_an_infinite_perplexity() -> None:
    assert LogPerplexity(1e4).perplexity == math.inf
    assert (str(LogPerplexity(math.inf)), str(LogPerplexity(math.nan))) == ("inf", "nan")


def test_records_replace_numbers_that_are_not_finite_by_null() -> None:
    assert LogPerplexity(math.nan).record() == {"nll": None, "perplexity": None}
    assert LogPerplexity(1e4).record() == {"nll": 1e4, "perplexity": None}
    assert LogPerplexity(5.0, 1e4).record()["interval_95"] == [0.0, None]


def test_numbers_are_readable() -> None:
    shown = [decimal(x) for x in (1.5, 31.824, 278.36, 12345.6, 3.2e9)]
    assert shown == ["1.50", "31.82", "278.4", "12,346", "3.2e+09"]
    assert percent(0.30049) == "30.0 %"
    assert (signed_percent(-0.234), signed_percent(0.05)) == ("−23.4 %", "+5.0 %")
    assert mebibytes(3 * 2**19) == "1.5 MiB"
    times = [duration(x) for x in (4.21, 59.99, 185, 3600 * 2 + 600)]
    assert times == ["4.2 s", "1 min 00 s", "3 min 05 s", "2 h 10 min"]
