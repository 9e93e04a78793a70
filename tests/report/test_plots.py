import math

import numpy as np

from ppf.report.plots import curves, policy_heatmap, scatter


def test_heatmap_has_a_row_for_each_block_and_policy_and_a_column_for_each_layer() -> None:
    dense = {f"{i}.{block}": 1.0 for i in range(2) for block in ("attention", "mlp", "mlp.1")}
    del dense["0.attention"]
    axes = policy_heatmap(
        {"PPF": dense | {"1.mlp.1": 0.0}, "even": dict.fromkeys(dense, 0.5)}
    ).axes[0]
    share = np.asarray(axes.collections[0].get_array())
    rows = [tick.get_text() for tick in axes.get_yticklabels()]
    found = {name: each.tolist() for name, each in zip(rows, share, strict=True)}
    assert found["mlp.1, PPF"] == [100, 0] and found["mlp, PPF"] == [100, 100]
    assert found["mlp.1, even"] == [50, 50]
    assert math.isnan(found["attention, PPF"][0]) and found["attention, PPF"][1] == 100
    cells = sorted(text.get_text() for text in axes.texts)
    assert cells == sorted(["50"] * 5 + ["100"] * 4 + ["0"])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0", "1"]


def test_scatter_leaves_out_what_is_not_finite() -> None:
    held_out = {"predicted": [3.0, 3.5, 4.0], "measured": [3.1, math.inf, 4.1]}
    figure = scatter(held_out | {"std": [0.1] * 3, "ratio": [0.1, 0.6, 0.4]})
    axes = figure.axes[0]
    assert np.asarray(axes.collections[-1].get_offsets()).tolist() == [[3.1, 3.0], [4.1, 4.0]]
    assert axes.get_title(loc="left") == "2 held-out policies"
    assert axes.get_xlim() == axes.get_ylim()


def test_curves_draws_each_metric_where_it_has_values_and_marks_rounds() -> None:
    rows = [{"step": 10 * i, "loss": 1 / (i + 1), "round": 1 + i // 2} for i in range(4)]
    rows[2] |= {"big_reward": 5.0, "loss": math.nan}
    axes = {axes.get_title(loc="left"): axes for axes in curves(rows).axes}
    assert axes.keys() == {"loss", "big reward"}
    line, *marks = axes["loss"].lines
    assert np.allclose(line.get_xydata(), [[0, 1], [10, 0.5], [30, 0.25]])
    assert [mark.get_xdata()[0] for mark in marks] == [20]
