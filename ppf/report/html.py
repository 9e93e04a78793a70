"""The page that tells what a search found: one file that opens without network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from ppf.report.plots import Row, curves, pareto_front, policy_heatmap, ratio_curve, scatter
from ppf.report.scores import Entry, Score, decimal, duration, percent
from ppf.report.style import FAINT, INK, PAPER, svg
from ppf.space import Space


@dataclass(frozen=True)
class HeldOut:
    """Policies that a predictor was not fitted to; scores are in nats per token.

    Args:
        std: standard deviations of the predictions.
        ratio: pruning ratios.
        quality: what the predictor reaches on them, by the metric's name.
    """

    predicted: Sequence[float]
    std: Sequence[float]
    measured: Sequence[float]
    ratio: Sequence[float]
    quality: Mapping[str, float]


@dataclass(frozen=True)
class Pareto:
    """Measured policies by two costs.

    Args:
        costs: names of the two.
        saved: share of each cost that a policy saves.
        nll: measured log-perplexity, nats per token.
        front: whether no other policy beats it on perplexity and both costs.
    """

    costs: tuple[str, str]
    saved: Sequence[tuple[float, float]]
    nll: Sequence[float]
    front: Sequence[bool]

    @property
    def rows(self) -> list[tuple[float, float, Score]]:
        """The front, by the first cost."""
        points = zip(self.saved, self.nll, self.front, strict=True)
        return sorted(
            ((x, y, Score(nll)) for (x, y), nll, chosen in points if chosen),
            key=lambda row: (row[0], row[1], row[2].nll),
        )


@dataclass(frozen=True)
class SearchReport:
    """Everything that the page of a search shows.

    Perplexities are on the labelling part of the text.

    Args:
        command: what runs this search again.
        order: the importance that orders the units.
        ratio_asked: share of the prunable parameters that was to be removed.
        ratio_achieved: share of the prunable parameters that `kept` removes.
        share_of_all: the same parameters as a share of all of the model's.
        kept: units that the found policy keeps, one a site.
        history: rows of metrics of the agent's training; empty for agents that do not train.
        summary: dense, uniform and the found policy at this ratio.
        candidates: the policies that the search proposed and measured, the best first.
        held_out: None if the predictor is not scored on held-out policies.
        curve: policies over the ratios that were asked for.
        pareto: all policies that were measured.
        seconds: time of each stage.
        paths: files that were written, by what they are.
        signatures: of the artefacts that were used, by what they are.
    """

    title: str
    command: str
    model: str
    order: str
    compensation: str
    text: str
    predictor: str
    agent: str
    ratio_asked: float
    ratio_achieved: float
    share_of_all: float
    space: Space
    kept: Sequence[int]
    history: Sequence[Row]
    held_out: HeldOut | None
    summary: Sequence[Entry]
    candidates: Sequence[Entry]
    curve: Sequence[Entry]
    pareto: Pareto
    seconds: Mapping[str, float]
    paths: Mapping[str, str | Path]
    signatures: Mapping[str, str]


def write_report(path: str | Path, context: SearchReport) -> None:
    """Writes the page."""
    held = context.held_out or HeldOut([], [], [], [], {})
    columns = (held.predicted, held.std, held.measured, held.ratio)
    page = _environment().get_template("report.html.j2")
    text = page.render(
        report=context,
        by_ratio=_by_ratio(context.curve),
        heatmap=_inline(policy_heatmap(context.space, context.kept)),
        training=_inline(curves(context.history)) if context.history else None,
        predictions=_inline(scatter(*columns, searched=context.candidates)),
        ratios=_inline(ratio_curve(context.curve)),
        pareto=_inline(pareto_front(*vars(context.pareto).values())),
    )
    Path(path).write_text(text, encoding="utf-8")


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("ppf.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"decimal": decimal, "duration": duration, "percent": percent}
    return environment


def _by_ratio(entries: Sequence[Entry]) -> list[tuple[str, list[Entry]]]:
    """Entries grouped by the ratio as it is shown, ascending, in their own order within."""
    ordered = sorted(entries, key=lambda entry: round(entry.ratio, 3))
    return [(name, list(rows)) for name, rows in groupby(ordered, lambda e: percent(e.ratio))]


def _inline(figure: Figure) -> Markup:
    """The figure as SVG that takes its ink and paper from the page, as wide as it was drawn."""
    text = svg(figure)
    for colour, name in ((INK, "ink"), (FAINT, "line"), (PAPER, "paper")):
        text = text.replace(colour, f"var(--{name})")
    width = round(figure.get_figwidth() * 96)
    return Markup(text.replace("<svg ", f'<svg style="--width:{width}px" role="img" ', 1))
