"""The HTML page of a search: one file that opens without a network."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from ppf.report.plots import Row, curves, pareto_front, policy_heatmap, ratio_curve, scatter
from ppf.report.scores import Entry, LogPerplexity, decimal, duration, percent
from ppf.report.style import FAINT, INK, PAPER, svg
from ppf.space import Space


@dataclass(frozen=True)
class PredictionScatter:
    """Predicted and measured log-perplexities of held-out policies.

    Args:
        predicted: predictions, nats per token.
        std: standard deviations of the predictions, nats per token.
        measured: measurements on the real model, nats per token.
        ratio: pruning ratios of the policies.
        quality: metrics of the predictor on these policies, by name.
    """

    predicted: Sequence[float]
    std: Sequence[float]
    measured: Sequence[float]
    ratio: Sequence[float]
    quality: Mapping[str, float]


@dataclass(frozen=True)
class Pareto:
    """Measured policies, their savings of two costs, and the Pareto front among them.

    Args:
        costs: names of the two costs.
        saved: shares of the two costs that each policy saves.
        nll: measured log-perplexity of each policy, nats per token.
        front: whether a policy is on the Pareto front of perplexity and both costs.
    """

    costs: tuple[str, str]
    saved: Sequence[tuple[float, float]]
    nll: Sequence[float]
    front: Sequence[bool]

    @property
    def rows(self) -> list[tuple[float, float, LogPerplexity]]:
        """Savings and log-perplexity of the policies on the front, sorted by the first saving."""
        points = zip(self.saved, self.nll, self.front, strict=True)
        return sorted(
            ((x, y, LogPerplexity(nll)) for (x, y), nll, chosen in points if chosen),
            key=lambda row: (row[0], row[1], row[2].nll),
        )


@dataclass(frozen=True)
class SearchReport:
    """Everything that the page of a search shows.

    All perplexities are those on the labelling part of the text.

    Args:
        title: heading of the page.
        command: the command that repeats this search.
        order: name of the importance that ranks the units.
        ratio_asked: requested pruning ratio.
        ratio_achieved: pruning ratio of the policy that was found.
        share_of_all: removed parameters as a share of all parameters of the model.
        kept: units that the policy keeps, per site.
        history: metrics of the agent, one row for each report; empty: there are none.
        held_out: policies that the predictor was not trained on; None: it has no held-out policies.
        summary: the dense model, uniform pruning and the policy that was found.
        candidates: policies that the search proposed and measured, best first.
        curve: policies at all requested ratios.
        pareto: all measured policies.
        seconds: duration of each stage.
        paths: written files, by their purpose.
        signatures: signatures of the artefacts, by the kind of artefact.
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
    held_out: PredictionScatter | None
    summary: Sequence[Entry]
    candidates: Sequence[Entry]
    curve: Sequence[Entry]
    pareto: Pareto
    seconds: Mapping[str, float]
    paths: Mapping[str, str | Path]
    signatures: Mapping[str, str]


def write_report(path: str | Path, context: SearchReport) -> None:
    """Writes the page to `path`."""
    held = context.held_out or PredictionScatter([], [], [], [], {})
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
    """Groups entries by their rounded ratio, ascending; a group keeps the order of its entries."""
    ordered = sorted(entries, key=lambda entry: round(entry.ratio, 3))
    return [(name, list(rows)) for name, rows in groupby(ordered, lambda e: percent(e.ratio))]


def _inline(figure: Figure) -> Markup:
    """The figure as SVG that uses the colours of the page, with its width as a CSS variable."""
    text = svg(figure)
    for colour, name in ((INK, "ink"), (FAINT, "line"), (PAPER, "paper")):
        text = text.replace(colour, f"var(--{name})")
    width = round(figure.get_figwidth() * 96)
    return Markup(text.replace("<svg ", f'<svg style="--width:{width}px" role="img" ', 1))
