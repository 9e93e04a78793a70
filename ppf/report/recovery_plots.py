"""Plots of a recovery training. Each function takes plain numbers and returns a figure."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from ppf.report.style import BLUE, GREY, ORANGE, legend_above, percents, styled

_COLOURS = {"dense": GREY, "pruned": ORANGE, "recovered": BLUE}


def loss_curve(curve: Sequence[tuple[int, float]], dense: float, pruned: float) -> Figure:
    """Loss against tokens read; a second axis shows the share of the lost nats that is recovered.

    Args:
        curve: tokens, and nats per token.
        dense: nats per token of the dense model.
        pruned: nats per token of the pruned model, before the training.
    """
    with styled():
        figure = Figure(figsize=(4.9, 3.7), layout="constrained")
        axes = figure.add_subplot()
        tokens, values = zip((0, pruned), *curve, strict=True)
        axes.plot(tokens, values, color=BLUE, lw=1.4, marker="o", ms=3, label="in training")
        for name, value in (("pruned", pruned), ("dense", dense)):
            axes.axhline(value, color=_COLOURS[name], lw=1, ls="--", label=name)
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e6:g}"))
        axes.set(xlabel="tokens read, millions", ylabel="nats per token")
        if pruned > dense:
            _add_shares(axes, dense, pruned)
        legend_above(axes)
    return figure


def _add_shares(axes: Axes, dense: float, pruned: float) -> None:
    """A second axis with the share of the lost nats that is recovered."""
    lost = pruned - dense
    functions = (lambda nll: (pruned - nll) / lost, lambda share: pruned - share * lost)
    shares = axes.secondary_yaxis("right", functions=functions)
    shares.set_ylabel("share of lost nats recovered")
    shares.yaxis.set_major_formatter(percents(100))


def by_ratio(ratios: Sequence[float], nlls: Mapping[str, Sequence[float]]) -> Figure:
    """Negative log-likelihoods against the pruning ratio, one line for each name.

    Args:
        nlls: dense, pruned and recovered → nats per token at each ratio.
    """
    with styled():
        figure = Figure(figsize=(4.9, 3.7), layout="constrained")
        axes = figure.add_subplot()
        for name, values in nlls.items():
            axes.plot(ratios, values, color=_COLOURS[name], lw=1.4, marker="o", ms=4, label=name)
        axes.set(xlabel="pruning ratio", ylabel="nats per token")
        axes.xaxis.set_major_formatter(percents(100))
        legend_above(axes)
    return figure
