from io import StringIO

from rich.console import Console

from ppf.report.scores import Entry, LogPerplexity
from ppf.report.tables import print_summary

ENTRIES = [
    Entry("dense", 0, LogPerplexity(2.766)),
    Entry("uniform", 0.3, LogPerplexity(3.58), LogPerplexity(3.6, 0.03)),
    Entry("PPF " + "with a long name " * 5, 0.3003, LogPerplexity(3.46)),
]
DEEP = "/".join(["outputs"] * 40)


def printed(**console) -> str:
    target = Console(file=StringIO(), **console)
    seconds = {"collect": 125.0, "search": 5.0}
    print_summary(ENTRIES, seconds, {"policy.json": DEEP, "report": "[b]"}, target=target)
    return target.file.getvalue()  # type: ignore[attr-defined]


def test_plain_output_is_never_cut_or_coloured() -> None:
    text = printed()
    assert "\x1b" not in text
    lines = [line.split() for line in text.splitlines()]
    assert ["dense", "0.0", "%", "15.89", "measured", "2.7660"] in lines
    assert ["uniform", "30.0", "%", "36.60", "predicted", "34.51", "–", "38.81", "3.6000"] in lines
    assert ["policy.json", DEEP] in lines
    assert ["report", "[b]"] in lines, "paths are no markup"
    assert any(line.startswith(" PPF with a long name with") and "31.82" in line
               for line in text.splitlines())  # fmt: skip
    assert ["total", "2", "min", "10", "s"] in lines


def test_terminals_get_emphasis_and_keep_to_their_width() -> None:
    text = printed(force_terminal=True, width=60, color_system="standard", legacy_windows=False)
    assert "\x1b[1m" in text
    assert DEEP in text, "a path can be copied"
