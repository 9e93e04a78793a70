import re
from io import StringIO

import pytest
from rich.console import Console

from ppf.report.tables import Column, Table, accuracy_table, error, interval, print_table

TABLE = Table(
    [
        Column("policy"),
        Column("labelling part", "{:.1f}".format),
        error("± standard error", "{:.2f}".format),
        Column("predicted", "{:.1f}".format),
        *interval("predicted", "{:.1f}".format),
    ],
    [["a [red]name[/d]", 3.0, 0.25, 3.1, 3.0, 3.2], ["b", 4.0, None, None, None, None]],
)


def printed(table: Table, **console: object) -> list[str]:
    target = Console(file=StringIO(), **console)  # type: ignore[arg-type]
    print_table(table, target=target)
    return target.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_readers_see_errors_and_intervals_beside_their_values() -> None:
    assert TABLE.shown.names == ["policy", "labelling part", "predicted"]
    assert TABLE.shown.rows[0][1:] == ["3.0 ± 0.25", "3.1 (3.0 – 3.2)"]
    assert TABLE.shown.rows[1] == ["b", "4.0", ""]
    assert TABLE.csv.splitlines()[1] == "a [red]name[/d],3.0,0.25,3.1,3.0,3.2"


def test_plain_output_is_never_cut_or_coloured_and_names_are_no_markup() -> None:
    long = Table([Column("x " * 80), Column("y")], [["value", "z"]])
    lines = printed(long, width=40)
    assert sum("x " * 80 in line for line in lines) == 1 and "\x1b" not in "".join(lines)
    assert any("a [red]name[/d]" in line for line in printed(TABLE))


def test_headings_are_wrapped_on_a_terminal() -> None:
    lines = printed(TABLE, force_terminal=True, width=48, color_system=None)
    assert max(map(len, lines)) <= 48
    assert any("3.0 ± 0.25" in line for line in lines), "numbers are whole"


def test_columns_without_values_are_left_out() -> None:
    table = Table([Column("a"), Column("b", str)], [["x", None], [None, None]])
    assert table.texts == [["x", ""], ["", ""]]
    assert table.without_empty_columns().names == ["a"]


def test_cells_in_markdown_stay_in_their_columns() -> None:
    text = Table([Column("a|b"), Column("c")], [["x|y\nz", 1.0]]).markdown
    assert text.count("\n") == 3
    assert [len(re.split(r"(?<!\\)\|", line)) for line in text.splitlines()] == [4, 4, 4]


def test_accuracy_has_a_column_for_each_band_with_intervals_beside_the_scores() -> None:
    metrics = {"mae": 0.01, "mae_15_30": 0.02, "kendall": 0.9, "policies": 1024}
    table = accuracy_table(metrics | {"kendall_low": 0.85, "kendall_high": 0.95})
    assert table.shown.names[1:] == ["all ratios", "15–30 %"]
    texts = {row[0]: row[1:] for row in table.shown.texts}
    assert texts["mean absolute error, nats"] == ["0.01", "0.02"]
    assert texts["Kendall"] == ["0.9 (0.85 – 0.95)", ""]
    assert texts["number of policies"] == ["1024", ""]
    assert table.rows[0][0] == "Kendall at equal ratio", "what a search lives on stands first"


@pytest.mark.parametrize("text", ["a\nb", "\x1b[31mred"])
def test_names_cannot_move_the_cursor(text: str) -> None:
    lines = printed(Table([Column(text)], [[text]]))
    assert "\x1b" not in "".join(lines)
