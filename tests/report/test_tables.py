from io import StringIO
from typing import Any

import pytest
from rich.console import Console

from ppf.report.tables import Table, accuracy_table, print_table

TABLE = Table(
    [
        {"policy": "a [red]name[/d]", "labelling part": 3.0, "± labelling part": 0.25, "n": 1024},
        {"policy": "b", "labelling part": 4.0, "± labelling part": None, "n": None},
    ],
    {"labelling part": "{:.1f}".format},
)


def printed(table: Table, **console: Any) -> list[str]:
    target = Console(file=StringIO(), **console)
    print_table(table, target=target)
    return target.file.getvalue().splitlines()  # type: ignore[attr-defined]


def test_readers_see_errors_beside_their_values_and_files_have_plain_numbers() -> None:
    assert TABLE.heads == {"policy": False, "labelling part": True, "n": True}
    assert TABLE.texts == [["a [red]name[/d]", "3.0 ± 0.2", "1,024"], ["b", "4.0", ""]]
    assert TABLE.csv.splitlines()[:2] == [
        "policy,labelling part,± labelling part,n",
        "a [red]name[/d],3.0,0.25,1024",
    ]


def test_plain_output_is_never_cut_or_coloured_and_names_are_no_markup() -> None:
    long = Table([{"x " * 80: "value", "y": "z"}])
    lines = printed(long, width=40)
    assert sum("x " * 80 in line for line in lines) == 1 and "\x1b" not in "".join(lines)
    assert any("a [red]name[/d]" in line for line in printed(TABLE))


def test_columns_without_values_are_left_out() -> None:
    table = Table([{"a": "x", "b": None}, {"a": None, "b": None}])
    assert table.names == ["a"] and table.texts == [["x"], [""]]
    assert Table([]).texts == []


def test_accuracy_has_columns_for_each_band_with_the_ends_of_intervals() -> None:
    metrics = {"mae": 0.01, "mae_15_30": 0.02, "kendall": 0.9, "policies": 1024}
    table = accuracy_table(metrics | {"kendall_low": 0.85, "kendall_high": 0.95})
    assert table.names[1:] == ["all ratios", "all ratios, low", "all ratios, high", "15–30 %"]
    texts = {row[0]: row[1:] for row in table.texts}
    assert texts["mean absolute error, nats"] == ["0.01", "", "", "0.02"]
    assert texts["Kendall"] == ["0.9", "0.85", "0.95", ""]
    assert texts["number of policies"] == ["1024", "", "", ""]
    assert table.rows[0]["score"] == "Kendall at equal ratio", "what a search lives on stands first"


@pytest.mark.parametrize("text", ["a\nb", "\x1b[31mred"])
def test_names_cannot_move_the_cursor(text: str) -> None:
    assert "\x1b" not in "".join(printed(Table([{text: text}])))
