"""How numbers are shown."""


def decimal(value: float | None) -> str:
    """A perplexity with three to seven digits; from 10⁷ on with an exponent; None: infinite."""
    if value is None:
        return "inf"
    if (size := abs(value)) < 100:
        return f"{value:.2f}"
    if size < 1000:
        return f"{value:.1f}"
    return f"{value:,.0f}" if size < 1e7 else f"{value:.3g}"


def percent(share: float) -> str:
    """A share in per cent, for example "30.1 %"."""
    return f"{100 * share:.1f} %"


def signed_percent(share: float) -> str:
    """A change in per cent with its sign, for example "−23.4 %"."""
    return f"{100 * share:+.1f} %".replace("-", "−")


def mebibytes(count: int) -> str:
    """A size, for example "256.6 MiB"."""
    return f"{count / 2**20:,.1f} MiB"


def duration(seconds: float) -> str:
    """A duration in readable units: "4.2 s", "3 min 05 s", "2 h 10 min"."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"
