from pathlib import Path

from ppf.recovery.curve import Point, Trace, add_point, read_curve


def test_a_resumed_run_replaces_the_points_behind_it(tmp_path: Path) -> None:
    file = tmp_path / "curve.json"
    assert read_curve(file) == []
    for tokens in (10, 20, 30):
        add_point(file, Point(tokens, 4.0, tokens / 10))
    add_point(file, Point(20, 3.0, 5.0))
    assert read_curve(file) == [Point(10, 4.0, 1.0), Point(20, 3.0, 5.0)]


def test_a_later_training_goes_on_where_the_first_ended() -> None:
    first = Trace(100, 2.0, [Point(100, 4.0, 2.0)])
    both = first.then(Trace(50, 3.0, [Point(50, 3.5, 3.0)]))
    assert (both.tokens, both.seconds) == (150, 5.0)
    assert both.curve == [Point(100, 4.0, 2.0), Point(150, 3.5, 5.0)]
