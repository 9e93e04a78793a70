import math
import xml.etree.ElementTree as ElementTree
from io import BytesIO

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ppf.report.plots import (
    curves,
    in_words,
    pareto_front,
    policy_heatmap,
    ratio_curve,
    scatter,
)
from ppf.report.scores import Entry, LogPerplexity
from ppf.report.style import png, save_png, svg
from ppf.space import Prunable, Space, build_space

SVG = "{http://www.w3.org/2000/svg}"


def space(layers: int) -> Space:
    places = [
        Prunable(layer, kind, atoms, 10)
        for layer in range(layers)
        for kind, atoms in (("attention", 4), ("mlp", 128))
    ]
    return build_space(
        places, name="width", kinds=["attention", "mlp"], channel_multiple=32, whole_sites=False
    )


def texts(figure: Figure) -> list[str]:
    return [str(element.text) for element in ElementTree.fromstring(svg(figure)).iter(f"{SVG}text")]


@pytest.mark.parametrize("layers", [1, 4, 30, 80])
def test_heatmap_annotates_every_site_and_every_layer(layers: int) -> None:
    place = space(layers)
    kept = [site.layer % 2 + (site.kind == "mlp") for site in place.sites]
    figure = policy_heatmap(place, {"": kept})
    cells = [text.get_text() for axes in figure.axes[:-1] for text in axes.texts]
    assert sorted(cells) == sorted(str(25 * count) for count in kept)
    ticks = [tick.get_text() for axes in figure.axes[:-1] for tick in axes.get_xticklabels()]
    assert ticks == [str(layer) for layer in range(layers)]


def test_heatmap_places_a_site_by_layer_and_kind() -> None:
    place = space(3)
    kept = place.dense.tolist()
    kept[[site.name for site in place.sites].index("2.mlp")] = 0
    figure = policy_heatmap(place, {"PPF": kept, "uniform": [1, 2] * 3})
    share = figure.axes[0].collections[0].get_array()
    half = [0.25] * 3, [0.5] * 3
    assert np.asarray(share).tolist() == [[1, 1, 1], half[0], [1, 1, 0], half[1]]
    rows = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert rows == ["attention, PPF", "attention, uniform", "mlp, PPF", "mlp, uniform"]


def test_heatmap_has_a_row_for_each_site_of_a_layer_and_kind() -> None:
    ffns = [Prunable(layer, "mlp", 128, 10, index) for layer in range(2) for index in range(2)]
    place = build_space(ffns, name="experts", kinds=["mlp"], channel_multiple=32, whole_sites=False)
    figure = policy_heatmap(place, {"": [1, 2, 3, 4]})
    share = figure.axes[0].collections[0].get_array()
    assert np.asarray(share).tolist() == [[0.25, 0.75], [0.5, 1.0]]
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == ["mlp", "mlp.1"]


def test_scatter_leaves_out_what_is_not_finite_and_says_so() -> None:
    figure = scatter([3.0, 3.5, 4.0], [0.1] * 3, [3.1, math.inf, 4.1], [0.1, 0.6, 0.4])
    axes = figure.axes[0]
    offsets = axes.collections[-1].get_offsets()
    assert np.asarray(offsets).tolist() == [[3.1, 3.0], [4.1, 4.0]]
    assert "2 held-out policies, 1 not finite" in texts(figure)
    assert axes.get_xlim() == axes.get_ylim()


def test_scatter_tells_proposals_from_uniform_and_rules() -> None:
    measured = [
        Entry("candidate 9", 0.3, LogPerplexity(3.4), LogPerplexity(3.3, 0.02)),
        Entry("candidate 8", 0.3, LogPerplexity(3.6)),
        Entry("flap", 0.3, LogPerplexity(3.9), LogPerplexity(3.8, 0.02)),
    ]
    figure = scatter([3.0], [0.1], [3.1], [0.1], searched=measured)
    marks = {
        dots.get_label(): np.asarray(dots.get_offsets()).tolist()
        for dots in figure.axes[0].collections
        if not str(dots.get_label()).startswith("_")
    }
    assert marks == {"proposed by the search": [[3.4, 3.3]], "uniform and rules": [[3.9, 3.8]]}
    assert "uniform and rules" in texts(figure)


def test_without_held_out_policies_nothing_is_said_of_them() -> None:
    figure = scatter(
        [], [], [], [], searched=[Entry("1", 0.3, LogPerplexity(3.4), LogPerplexity(3.3))]
    )
    assert png(figure) and png(scatter([], [], [], []))
    assert len(figure.axes) == 1 and not figure.axes[0].get_title(loc="left")


def test_curves_draws_each_metric_where_it_has_values() -> None:
    rows = [{"step": 10 * i, "loss": 1 / (i + 1), "epoch": i} for i in range(4)]
    rows[2] |= {"reward": 5.0, "loss": math.nan}
    rows.append({"step": 40, "loss": None})  # type: ignore[dict-item]
    figure = curves(rows)
    drawn = {axes.get_title(loc="left"): axes.lines[0].get_xydata() for axes in figure.axes}
    assert drawn.keys() == {"loss", "gain over uniform pruning, nats"}
    assert np.asarray(drawn["loss"]).tolist() == [[0, 1], [10, 0.5], [30, 0.25]]
    assert np.asarray(drawn["gain over uniform pruning, nats"]).tolist() == [[20, 5]]


def test_curves_mark_where_rounds_begin() -> None:
    rows = [{"step": i, "reward": 0.0, "round": 1 + i // 3} for i in range(7)]
    axes = curves(rows).axes[0]
    marks = [line.get_xdata()[0] for line in axes.lines[1:]]
    assert marks == [0, 3, 6]
    assert [text.get_text() for text in axes.texts] == ["round 1", "round 2", "round 3"]
    assert len(curves(rows[:3]).axes[0].lines) == 1, "one round needs no mark"
    many = curves([{"step": i, "reward": 0.0, "round": 1 + i} for i in range(10)]).axes[0]
    assert len(many.lines) == 11
    assert [text.get_text() for text in many.texts] == ["round 1", "round 4", "round 7", "round 10"]


def test_ticks_of_curves_have_no_offset_where_the_round_is_named() -> None:
    rows = [{"step": i, "reward": 1e-4 * i + 2000} for i in range(4)]
    figure = curves(rows)
    png(figure)
    assert figure.axes[0].yaxis.get_offset_text().get_text() == ""


def test_metrics_have_names_in_words() -> None:
    assert in_words("perplexity_15_30") == "perplexity of sampled policies, 15–30 %"
    assert in_words("something_new") == "something new"


def test_ticks_at_steps_of_two_and_a_half_per_cent_say_so() -> None:
    entries = [Entry("PPF", ratio, LogPerplexity(3 + ratio)) for ratio in (0.3, 0.31)]
    axes = ratio_curve(entries).axes[0]
    axes.set_xticks([0, 2.5, 5, 10])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0 %", "2.5 %", "5 %", "10 %"]


def test_legends_lie_outside_the_axes() -> None:
    entries = [Entry("PPF", r / 10, LogPerplexity(r)) for r in range(1, 6)]
    figure = ratio_curve(entries, labels=[(0.2, 1.0), (0.4, 99.0)])
    png(figure)  # lays the figure out
    (legend,) = figure.legends
    renderer = figure._get_renderer()  # type: ignore[attr-defined]
    assert not legend.get_window_extent(renderer).overlaps(figure.axes[0].bbox)
    dots = figure.axes[0].collections[0].get_offsets()
    assert len(dots) == 1, "labels far above the entries are left out"


def test_ratio_curve_fills_measured_marks_only() -> None:
    entries = [Entry("uniform", r / 10, predicted=LogPerplexity(3 + r / 5, 0.1)) for r in (1, 2, 3)]
    entries += [Entry("dense", 0, LogPerplexity(2.7)), Entry("PPF", 0.9, LogPerplexity(math.inf))]
    axes = ratio_curve(entries).axes[0]
    lines = [line for line in axes.lines if len(line.get_xydata())]  # type: ignore[arg-type]
    assert [line.get_markerfacecolor() == "none" for line in lines] == [True, False]
    assert np.allclose(lines[0].get_xydata(), [[10 * r, math.exp(3 + r / 5)] for r in (1, 2, 3)])
    assert len(axes.collections) == 1, "the band of the predictions"


@pytest.mark.parametrize("factor", [1.01, 2, 1e4])
def test_ratio_curve_has_readable_ticks_for_any_range(factor: float) -> None:
    entries = [
        Entry("PPF", 0.1, LogPerplexity(3)),
        Entry("PPF", 0.5, LogPerplexity(3 + math.log(factor))),
    ]
    axes = ratio_curve(entries).axes[0]
    low, high = axes.get_ylim()
    assert 2 <= sum(low <= tick <= high for tick in axes.get_yticks()) <= 20
    assert not [t for t in axes.get_yticklabels() if "e" in t.get_text()], "no exponents"


def test_figures_save_as_png_and_svg(tmp_path) -> None:
    figure = ratio_curve([Entry("dense", 0, LogPerplexity(2.7))])
    save_png(figure, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as image:
        assert image.size == (735, 555)
    with Image.open(BytesIO(png(figure))) as image:
        assert image.format == "PNG"
    assert svg(figure).startswith("<svg")
    assert svg(figure) == svg(figure), "same figure, same file"


def test_the_pareto_front_is_drawn_without_broken_policies() -> None:
    saved = [(0.1, 0.2), (0.3, 0.1), (0.5, 0.5)]
    figure = pareto_front(("params", "kv"), saved, [3.0, 3.5, math.inf], [True, False, False])
    axes = figure.axes[0]
    assert [len(dots.get_offsets()) for dots in axes.collections] == [1, 1]
    assert axes.get_xlabel() == "params saved" and axes.get_ylabel() == "kv saved"
