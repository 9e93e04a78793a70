import pytest

from ppf.report.recovery_plots import by_ratio, loss_curve


def test_the_curve_begins_at_the_pruned_model_and_shows_the_share_won_back() -> None:
    axes = loss_curve([(100, 3.5), (200, 3.25)], dense=3.0, pruned=4.0).axes[0]
    assert axes.lines[0].get_xydata().tolist() == [[0, 4.0], [100, 3.5], [200, 3.25]]
    (shares,) = axes.child_axes
    forward, back = shares._functions
    assert forward(3.25) == pytest.approx(0.75) and back(0.75) == pytest.approx(3.25)


def test_ticks_and_legend_are_those_of_other_plots() -> None:
    figure = by_ratio([0.1, 0.5], {"dense": [3.0, 3.0]})
    figure.axes[0].set_xticks([0.225])
    assert figure.axes[0].get_xticklabels()[0].get_text() == "22.5 %"
    for drawn in (figure, loss_curve([(100, 3.5)], dense=3.0, pruned=4.0)):
        assert drawn.legends and not drawn.axes[0].get_legend()


def test_a_pruned_model_that_lost_nothing_has_no_shares() -> None:
    assert not loss_curve([(100, 3.5)], dense=3.0, pruned=3.0).axes[0].child_axes


def test_every_model_has_a_line_over_the_ratios() -> None:
    nlls = {"dense": [3.0, 3.0], "pruned": [3.2, 4.0], "recovered": [3.1, 3.5]}
    axes = by_ratio([0.1, 0.5], nlls).axes[0]
    assert {line.get_label(): list(line.get_ydata()) for line in axes.lines} == nlls
