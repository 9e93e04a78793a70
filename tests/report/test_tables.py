import math
import re
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from ppf.report.scores import Entry, LogPerplexity
from ppf.report.tables import (
    Column,
    Table,
    accuracy_table,
    print_summary,
    print_table,
    printed_scores,
    score_table,
    selection_table,
)

ENTRIES = [
    Entry("dense", 0, LogPerplexity(2.766)),
    Entry("uniform", 0.3, LogPerplexity(3.58), LogPerplexity(3.6, 0.03)),
    Entry("PPF", 0.3003, LogPerplexity(3.46)),
]
DEEP = "/".join(["outputs"] * 40)


def printed(**console) -> str:
    target = Console(file=StringIO(), **console)
    seconds, paths = {"collect": 125.0, "search": 5.0}, {"policy.json": DEEP, "report": "[b]"}
    scores = printed_scores(ENTRIES, {"PPF": "PPF (" + "a long name " * 5 + ")"})
    given = scores, "Measured on 8 windows.", seconds, paths, {"Go on": "python prune.py [b]"}
    print_summary(*given, target=target)
    return target.file.getvalue()  # type: ignore[attr-defined]


def test_plain_output_is_never_cut_or_coloured() -> None:
    text = printed()
    assert "\x1b" not in text
    lines = [line.split() for line in text.splitlines()]
    assert ["dense", "0.0", "%", "15.89"] in lines
    assert ["uniform", "30.0", "%", "35.87", "36.60"] in lines
    assert ["policy.json", DEEP] in lines
    assert ["report", "[b]"] in lines, "paths are no markup"
    assert any(
        line.startswith(" PPF (a long name a long") and "31.82" in line and "−11.3 %" in line
        for line in text.splitlines()
    )
    assert ["total", "2", "min", "10", "s"] in lines
    assert "Measured on 8 windows." in text
    assert text.splitlines()[-1] == "Go on: python prune.py [b]"


def test_terminals_get_emphasis_and_keep_to_their_width() -> None:
    text = printed(force_terminal=True, width=60, color_system="standard", legacy_windows=False)
    assert "\x1b[1m" in text
    assert DEEP in text, "a path can be copied"


FINALIST = Entry(
    "flap", 0.3, LogPerplexity(3.5, std_error=0.01), selection=LogPerplexity(3.6, std_error=0.02),
    difference=LogPerplexity(math.log(0.8), std_error=0.01), parameters=7,
)  # fmt: skip


def test_every_number_has_a_column_of_its_own() -> None:
    table = score_table([*ENTRIES, FINALIST])
    assert "selection part" not in table.names, "it would be empty for most policies"
    cells = dict(zip(table.names, table.rows[1], strict=True))
    assert cells["predicted, low"] == pytest.approx(math.exp(3.6 - 1.96 * 0.03))
    assert cells["predicted, high"] == pytest.approx(math.exp(3.6 + 1.96 * 0.03))
    assert dict(zip(table.names, table.texts[-1], strict=True))["parameters"] == "7"
    assert all(isinstance(cell, float | int | None) for row in table.rows for cell in row[1:])


def test_readers_see_intervals_beside_their_values_and_no_details() -> None:
    shown = score_table([*ENTRIES, FINALIST]).shown
    assert shown.names == ["policy", "ratio", "labelling part", "against uniform", "predicted"]
    assert shown.rows[1] == ["uniform", "30.0 %", "35.87", "", "36.60 (34.51 – 38.81)"]
    assert shown.rows[3] == ["flap", "30.0 %", "33.12", "−7.7 %", ""]


def test_the_selection_part_has_a_table_of_its_own() -> None:
    table = selection_table([*ENTRIES, FINALIST])
    (row,) = (dict(zip(table.names, row, strict=True)) for row in table.rows)
    assert row["against uniform"] == pytest.approx(-0.2)
    assert row["± standard error, against uniform"] == pytest.approx(0.008)
    names = ["policy", "ratio", "selection part", "against uniform", "labelling part"]
    assert table.shown.names == names
    texts = ["flap", "30.0 %", "36.60 ± 0.73", "−20.0 % ± 0.8 %", "33.12 ± 0.33"]
    assert table.shown.rows == [texts]


def test_a_budget_of_bytes_has_a_column_of_sizes() -> None:
    rows = [Entry("PPF", 0.7, LogPerplexity(3.0), bytes=3 * 2**20)]
    assert printed_scores(rows).shown.rows == [["PPF", "3.0", "20.09"]]
    assert score_table(rows).rows[0][:3] == ["PPF", 0.7, 3.0]


def on_a_terminal(table: Table, width: int) -> list[str]:
    target = Console(file=StringIO(), force_terminal=True, width=width, color_system=None)
    print_table(table, target=target)
    return target.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_80_characters_are_enough() -> None:
    rules = [replace(FINALIST, policy=name) for name in ("alphapruning", "block_influence")]
    table = printed_scores([*ENTRIES, *rules], {"PPF": "PPF (Evolution)"})
    lines = on_a_terminal(table, 80)
    for name in ("labelling part", "selection part", "predicted", "block_influence", "(Evolution)"):
        assert name in "\n".join(lines), name
    assert len(table.shown.columns) == 6 and max(map(len, lines)) <= 80
    assert "33.12 ± 0.33" in lines[-2] and "36.60 ± 0.73" in lines[-2]


def test_a_narrow_terminal_gets_fewer_columns() -> None:
    *_, last = on_a_terminal(printed_scores(ENTRIES), 40)
    assert last == "This terminal is too narrow for: predicted."


def test_a_policy_of_several_rules_has_one_row_with_all_names() -> None:
    table = score_table([Entry("uniform", 0.3, LogPerplexity(3.58), also=("owl", "flap"))])
    assert [row[0] for row in table.texts] == ["uniform = owl = flap"]


@pytest.mark.parametrize("broken", ["flap", "uniform"])
def test_a_broken_policy_has_no_change(broken: str) -> None:
    losses = {"uniform": 3.5, "flap": 3.6} | {broken: math.inf}
    entries = [Entry(name, 0.3, LogPerplexity(loss)) for name, loss in losses.items()]
    table = score_table(entries)
    assert "against uniform" not in table.names, "no row has a finite change"


def test_cells_without_a_value_are_empty() -> None:
    table = Table([Column("a"), Column("b", "{:.1f}".format)], [["x", None], [None, 2]])
    assert table.texts == [["x", ""], ["", "2.0"]]


def test_headings_are_no_markup() -> None:
    lines = on_a_terminal(Table([Column("a [red]b"), Column("c[/d]")], [["x", "y"]]), 80)
    assert lines[1].split() == ["a", "[red]b", "c[/d]"]


def test_cells_in_markdown_stay_in_their_columns() -> None:
    text = Table([Column("a|b"), Column("c")], [["x|y\nz", 1.0]]).markdown
    assert text.count("\n") == 3
    assert [len(re.split(r"(?<!\\)\|", line)) for line in text.splitlines()] == [4, 4, 4]


def test_accuracy_has_a_column_for_each_band() -> None:
    metrics = {"mae": 0.01, "mae_15_30": 0.02, "coverage": 0.9, "policies": 1024}
    table = accuracy_table(metrics, [0.0, 0.15, 0.3])
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
    assert table.names[1:] == ["all ratios", "all ratios, low", "all ratios, high"]
    assert table.rows[1][1:] == [0.9, 0.85, 0.95]
    assert table.shown.rows[1][1:] == ["0.9 (0.85 – 0.95)"]
