import math
from io import StringIO

from rich.console import Console

from ppf.report.scores import Entry, LogPerplexity
from ppf.report.tables import Column, Table, accuracy_table, print_summary, score_table

ENTRIES = [
    Entry("dense", 0, LogPerplexity(2.766)),
    Entry("uniform", 0.3, LogPerplexity(3.58), LogPerplexity(3.6, 0.03)),
    Entry("PPF", 0.3003, LogPerplexity(3.46)),
]
DEEP = "/".join(["outputs"] * 40)


def printed(**console) -> str:
    target = Console(file=StringIO(), **console)
    seconds, paths = {"collect": 125.0, "search": 5.0}, {"policy.json": DEEP, "report": "[b]"}
    scores = score_table(ENTRIES, {"PPF": "PPF (" + "a long name " * 5 + ")"})
    print_summary(scores, "Measured on 8 windows.", seconds, paths, target=target)
    return target.file.getvalue()  # type: ignore[attr-defined]


def test_plain_output_is_never_cut_or_coloured() -> None:
    text = printed()
    assert "\x1b" not in text
    lines = [line.split() for line in text.splitlines()]
    assert ["dense", "0.0", "%", "15.89", "2.7660"] in lines
    assert ["uniform", "30.0", "%", "35.87", "36.60", "34.51", "–", "38.81", "3.5800"] in lines
    assert ["policy.json", DEEP] in lines
    assert ["report", "[b]"] in lines, "paths are no markup"
    assert any(
        line.startswith(" PPF (a long name a long") and "31.82" in line and "−11.3 %" in line
        for line in text.splitlines()
    )
    assert ["total", "2", "min", "10", "s"] in lines
    assert "Measured on 8 windows." in text


def test_terminals_get_emphasis_and_keep_to_their_width() -> None:
    text = printed(force_terminal=True, width=60, color_system="standard", legacy_windows=False)
    assert "\x1b[1m" in text
    assert DEEP in text, "a path can be copied"


def test_columns_appear_when_something_is_known() -> None:
    names = score_table(ENTRIES).names
    assert "selection part" not in names and "± standard error" not in names
    more = Entry(
        "flap", 0.3, LogPerplexity(3.5, std_error=0.01), selection=LogPerplexity(3.6),
        difference=LogPerplexity(math.log(0.8), std_error=0.01), parameters=7,
    )  # fmt: skip
    table = score_table([*ENTRIES, more])
    row = dict(zip(table.names, table.texts[-1], strict=True))
    assert row["± standard error"] == "0.33"
    assert row["selection part"] == "36.60"
    assert row["against uniform, selection"] == "−20.0 ± 0.8 %"
    assert row["parameters"] == "7"
    assert row["against uniform"] == "−7.7 %"
    assert "± standard error, selection" not in row


def test_a_policy_of_several_rules_has_one_row_with_all_names() -> None:
    table = score_table([Entry("uniform", 0.3, LogPerplexity(3.58), also=("owl", "flap"))])
    assert [row[0] for row in table.texts] == ["uniform = owl = flap"]


def test_a_broken_policy_has_no_finite_change() -> None:
    table = score_table([*ENTRIES, Entry("flap", 0.3, LogPerplexity(math.inf))])
    assert table.texts[-1][table.names.index("against uniform")] == "+nan %"


def test_cells_without_a_value_are_empty() -> None:
    table = Table([Column("a"), Column("b", "{:.1f}".format)], [["x", None], [None, 2]])
    assert table.texts == [["x", ""], ["", "2.0"]]


def test_accuracy_has_a_column_for_each_band() -> None:
    metrics = {"mae": 0.01, "mae_15_30": 0.02, "coverage": 0.9, "policies": 1024}
    table = accuracy_table(metrics, [0.0, 0.15, 0.3]).without_empty_columns()
    assert table.names[1:] == ["all ratios", "15–30 %"]
    texts = {row[0]: row[1:] for row in table.texts}
    assert texts["mean absolute error, nats"] == ["0.01", "0.02"]
    assert texts["coverage of the 90 % interval"] == ["0.9", "too few"]
    assert texts["Kendall"] == ["too few"] * 2
    assert texts["number of policies"] == ["1024", "too few"]
    assert table.rows[-1][2] is None, "loggers get no text among numbers"
    assert table.rows[0][0] == "Kendall at equal ratio", "what a search lives on stands first"


def test_scores_have_their_intervals_beside_them() -> None:
    metrics = {"kendall": 0.9, "kendall_low": 0.85, "kendall_high": 0.95}
    table = accuracy_table(metrics, [])
    row = dict(zip(table.names, table.texts[1], strict=True))
    assert row["all ratios"] == "0.9" and row["all ratios, 90 % interval"] == "0.85 – 0.95"
