import math
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ppf.report.plots import curves, policy_heatmap, ratio_curve, scatter
from ppf.report.style import png, save_png, svg
from tests.report.summaries import row


@pytest.mark.parametrize("layers", [1, 30, 80])
def test_heatmap_annotates_every_site_and_every_layer(layers: int) -> None:
    kept = {f"{i}.{kind}": i % 2 / 4 for i in range(layers) for kind in ("attention", "mlp")}
    figure = policy_heatmap({"PPF": kept})
    cells = [text.get_text() for axes in figure.axes for text in axes.texts]
    assert sorted(cells) == sorted(f"{100 * share:.0f}" for share in kept.values())
    ticks = [tick.get_text() for axes in figure.axes for tick in axes.get_xticklabels()]
    assert ticks == [str(layer) for layer in range(layers)]


def test_heatmap_places_a_site_by_layer_and_block() -> None:
    dense = {f"{i}.{block}": 1.0 for i in range(2) for block in ("attention", "mlp", "mlp.1")}
    del dense["0.attention"]
    figure = policy_heatmap({"PPF": dense | {"1.mlp.1": 0.0}, "uniform": dict.fromkeys(dense, 0.5)})
    share = np.asarray(figure.axes[0].collections[0].get_array())
    rows = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    found = {name: each.tolist() for name, each in zip(rows, share, strict=True)}
    assert found["mlp.1, PPF"] == [1, 0] and found["mlp, PPF"] == [1, 1]
    assert found["mlp.1, uniform"] == [0.5, 0.5]
    assert math.isnan(found["attention, PPF"][0]) and found["attention, PPF"][1] == 1


def test_scatter_leaves_out_what_is_not_finite() -> None:
    figure = scatter([3.0, 3.5, 4.0], [0.1] * 3, [3.1, math.inf, 4.1], [0.1, 0.6, 0.4])
    axes = figure.axes[0]
    assert np.asarray(axes.collections[-1].get_offsets()).tolist() == [[3.1, 3.0], [4.1, 4.0]]
    assert axes.get_title(loc="left") == "2 held-out policies"
    assert axes.get_xlim() == axes.get_ylim()


def test_scatter_tells_proposals_from_uniform_and_rules() -> None:
    names = {"candidate 9": 3.4, "flap": 3.9}
    rows = [row(name, 0.3, nll, predicted=(nll - 0.1, 0.02)) for name, nll in names.items()]
    figure = scatter([], [], [], [], searched=rows)
    marks = {dots.get_label(): dots.get_offsets() for dots in figure.axes[0].collections}
    assert np.allclose(marks["proposed by the search"], [[3.4, 3.3]])
    assert np.allclose(marks["uniform and rules"], [[3.9, 3.8]])
    assert png(figure) and png(scatter([], [], [], []))


def test_curves_draws_each_metric_where_it_has_values_and_marks_rounds() -> None:
    rows = [{"step": 10 * i, "loss": 1 / (i + 1), "round": 1 + i // 2} for i in range(4)]
    rows[2] |= {"big_reward": 5.0, "loss": math.nan}
    axes = {axes.get_title(loc="left"): axes for axes in curves(rows).axes}
    assert axes.keys() == {"loss", "big reward"}
    line, *marks = axes["loss"].lines
    assert np.allclose(line.get_xydata(), [[0, 1], [10, 0.5], [30, 0.25]])
    assert [mark.get_xdata()[0] for mark in marks] == [20]


def test_ratio_curve_fills_measured_marks_only_and_leaves_out_far_labels() -> None:
    rows = [row("uniform", r / 10, None, predicted=(3 + r / 5, 0.1)) for r in (1, 2, 3)]
    rows += [row("dense", 0.0, 2.7), row("PPF", 0.9, math.inf)]
    figure = ratio_curve(rows, "PPF (ppo)", [[0.2, 1.0], [0.4, 99.0], [0.3, None]], "x")
    axes = figure.axes[0]
    drawn = {
        line.get_markerfacecolor() == "none": line.get_xydata()
        for line in axes.lines
        if len(line.get_xydata())
    }
    assert np.allclose(drawn[True], [[10 * r, math.exp(3 + r / 5)] for r in (1, 2, 3)])
    assert np.allclose(drawn[False], [[0, math.exp(2.7)]])
    assert len(axes.collections[0].get_offsets()) == 1
    png(figure)  # lays the figure out
    (legend,) = figure.legends
    assert "PPF (ppo)" in [text.get_text() for text in legend.get_texts()]
    renderer = figure._get_renderer()
    assert not legend.get_window_extent(renderer).overlaps(axes.bbox)


@pytest.mark.parametrize("factor", [1.01, 2, 1e4])
def test_ratio_curve_has_readable_ticks_for_any_range(factor: float) -> None:
    rows = [row("PPF", 0.1, 3), row("PPF", 0.5, 3 + math.log(factor))]
    axes = ratio_curve(rows, "PPF", [], "pruning ratio").axes[0]
    low, high = axes.get_ylim()
    assert 2 <= sum(low <= tick <= high for tick in axes.get_yticks()) <= 20
    assert not [t for t in axes.get_yticklabels() if "e" in t.get_text()], "no exponents"
    axes.set_xticks([0, 2.5, 5])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0 %", "2.5 %", "5 %"]


def test_figures_save_as_png_and_svg(tmp_path: Path) -> None:
    figure = ratio_curve([row("dense", 0.0, 2.7)], "PPF", [], "pruning ratio")
    save_png(figure, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as image, Image.open(BytesIO(png(figure))) as other:
        assert image.size == (735, 555) and other.format == "PNG"
    assert svg(figure).startswith("<svg")
    assert svg(figure) == svg(figure), "same figure, same file"
