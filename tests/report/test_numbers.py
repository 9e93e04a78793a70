from ppf.report.numbers import decimal, duration, mebibytes, percent, signed_percent


def test_numbers_are_readable() -> None:
    shown = [decimal(x) for x in (1.5, 31.824, 278.36, 12345.6, 3.2e9, None)]
    assert shown == ["1.50", "31.82", "278.4", "12,346", "3.2e+09", "inf"]
    assert percent(0.30049) == "30.0 %"
    assert (signed_percent(-0.234), signed_percent(0.05)) == ("−23.4 %", "+5.0 %")
    assert mebibytes(3 * 2**19) == "1.5 MiB"
    times = [duration(x) for x in (4.21, 59.99, 185, 3600 * 2 + 600)]
    assert times == ["4.2 s", "1 min 00 s", "3 min 05 s", "2 h 10 min"]
