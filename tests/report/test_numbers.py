import math

import pytest

from ppf.report.numbers import LogPerplexity, decimal, duration, mebibytes, percent, signed_percent


def test_records_have_the_interval_of_a_prediction_and_null_for_what_is_not_finite() -> None:
    measured, predicted = LogPerplexity(3.0, std_error=0.05), LogPerplexity(math.log(20), 0.1)
    assert measured.record() == {"nll": 3.0, "perplexity": math.exp(3.0), "std_error": 0.05}
    ends = predicted.record()["interval_95"]
    assert ends == pytest.approx([20 * math.exp(-0.196), 20 * math.exp(0.196)])
    assert LogPerplexity(math.nan).record() == {"nll": None, "perplexity": None}
    assert LogPerplexity(1e4).record() == {"nll": 1e4, "perplexity": None}
    assert LogPerplexity(5.0, 1e4).record()["interval_95"] == [0.0, None]


def test_numbers_are_readable() -> None:
    shown = [decimal(x) for x in (1.5, 31.824, 278.36, 12345.6, 3.2e9, None)]
    assert shown == ["1.50", "31.82", "278.4", "12,346", "3.2e+09", "inf"]
    assert percent(0.30049) == "30.0 %"
    assert (signed_percent(-0.234), signed_percent(0.05)) == ("−23.4 %", "+5.0 %")
    assert mebibytes(3 * 2**19) == "1.5 MiB"
    times = [duration(x) for x in (4.21, 59.99, 185, 3600 * 2 + 600)]
    assert times == ["4.2 s", "1 min 00 s", "3 min 05 s", "2 h 10 min"]
