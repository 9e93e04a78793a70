"""The report of a search, for one ratio or for all."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import isclose
from pathlib import Path

from ppf.predictor.scores import coverage_warning
from ppf.report.headline import baseline, curve_headline, search_headline, signed_with_error
from ppf.report.page import Page, ReportSection, Tile
from ppf.report.plots import HistoryRow, curves, pareto_front, policy_heatmap, ratio_curve, scatter
from ppf.report.scores import Entry, LogPerplexity, decimal, gain, mebibytes, percent
from ppf.report.tables import (
    Cell,
    Column,
    Table,
    accuracy_table,
    printed_scores,
    score_table,
    selection_table,
    times_table,
)
from ppf.space import Space

_LONG = 12  # rows above which a table of results is folded


@dataclass(frozen=True)
class Accuracy:
    """A predictor on policies that it was not fitted to.

    Args:
        predicted: predictions, nats per token.
        std: standard deviations of the predictions, nats per token.
        measured: measurements on the real model, nats per token.
        ratio: pruning ratios of the policies.
        metrics: scores of the predictor on these policies, by name.
        bands: edges of the ratio bands of the scores.
    """

    predicted: Sequence[float]
    std: Sequence[float]
    measured: Sequence[float]
    ratio: Sequence[float]
    metrics: Mapping[str, float]
    bands: Sequence[float]


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
    def table(self) -> Table:
        """The policies on the front, sorted by the first saving."""
        points = zip(self.saved, self.nll, self.front, strict=True)
        rows: list[list[Cell]] = sorted(
            [x, y, LogPerplexity(nll).perplexity, nll] for (x, y), nll, chosen in points if chosen
        )
        heads = [Column(f"{cost} saved", percent) for cost in self.costs]
        nats = Column("nats per token", "{:.4f}".format)
        return Table([*heads, Column("perplexity", decimal), nats], rows)


@dataclass(frozen=True)
class SearchReport:
    """What the page of a search shows.

    Args:
        title: heading of the page.
        command: the command that repeats this search.
        measured_on: a sentence about the text and the windows of every measured perplexity.
        agent: name of the agent.
        dynamic: whether the search was for all ratios.
        settings: of the search: name → value.
        space: sites of the policies.
        policies: name → units kept at each site; drawn below each other.
        words: name → what each site keeps, in words, if the policies also round weights.
        entries: dense, uniform, rules and "PPF", at each ratio.
        candidates: all policies measured at the ratio, best first; empty: a dynamic search.
        labels: ratio and log-perplexity of the labelled policies.
        history: metrics of the agent, one row for each report; empty: there are none.
        accuracy: of the predictor on random policies; None: it was not fitted to any.
        proposals: scores of the predictions of proposals, by name; empty: fewer than three were
            measured.
        pareto: all measured policies; None: not drawn.
        seconds: duration of each stage.
        evaluations: number of policies measured on the real model.
        paths: written files, by their purpose.
        signatures: signatures of the artefacts, by the kind of artefact.
        machine: versions and hardware: name → value.
        next_commands: purpose → command.
    """

    title: str
    command: str
    measured_on: str
    agent: str
    dynamic: bool
    settings: Mapping[str, str]
    space: Space
    policies: Mapping[str, Sequence[int]]
    entries: Sequence[Entry]
    candidates: Sequence[Entry]
    labels: Sequence[tuple[float, float]]
    history: Sequence[HistoryRow]
    accuracy: Accuracy | None
    proposals: Mapping[str, float]
    pareto: Pareto | None
    seconds: Mapping[str, float]
    evaluations: int
    paths: Mapping[str, str | Path]
    signatures: Mapping[str, str]
    machine: Mapping[str, str]
    next_commands: Mapping[str, str]
    words: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def names(self) -> dict[str, str]:
        """What tables show in place of a policy's name: PPF's row names the agent."""
        return {"PPF": f"PPF ({self.agent})"}

    @property
    def printed(self) -> Table:
        """The table of all measured entries for the console."""
        return printed_scores([entry for entry in self.entries if entry.measured], self.names)


def search_page(report: SearchReport) -> Page:
    """The page of a search."""
    headline = curve_headline if report.dynamic else search_headline
    return Page(
        title=report.title,
        command=report.command,
        headline=[*headline(report.entries), report.measured_on],
        tiles=[] if report.dynamic else _tiles(report),
        sections=[
            *_results(report),
            *_predictions(report),
            *_policies(report),
            *_accuracy(report),
            *_training(report),
            *_measured(report),
            *_run(report),
        ],
        next_commands=report.next_commands,
    )


def search_metrics(report: SearchReport) -> dict[str, float]:
    """The metrics of a search for loggers, by name; "PPF/perplexity/0.3" in a dynamic search.

    Ratios of policies other than PPF are close to PPF's, and left out.
    """
    metrics: dict[str, float] = {}
    for entry in report.entries:
        at = f"/{entry.ratio:g}" if report.dynamic else ""
        known = {
            "perplexity": entry.measured,
            "selection_perplexity": entry.selection,
            "test_perplexity": entry.test,
            "predicted_perplexity": entry.predicted,
        }
        own: dict[str, float] = {}
        for name, score in known.items():
            if score:
                own[name] = score.perplexity
            if score and score.error is not None:
                own[f"{name}_error"] = score.error
        if entry.parameters:
            own["parameters"] = entry.parameters
        if entry.bytes is not None:
            own["matrices_mib"] = entry.bytes / 2**20
        for policy in (entry.policy, *entry.also):
            metrics |= {f"{policy}/{name}{at}": value for name, value in own.items()}
        if entry.policy == "PPF" and not report.dynamic:
            metrics["PPF/ratio"] = entry.ratio
    metrics |= {f"proposals/{name}": score for name, score in report.proposals.items()}
    metrics |= {f"seconds/{name}": spent for name, spent in report.seconds.items()}
    return metrics | {
        "seconds/total": sum(report.seconds.values()),
        "evaluations": report.evaluations,
    }


def _tiles(report: SearchReport) -> list[Tile]:
    known = {entry.policy: entry for entry in report.entries}
    chosen = [known[name] for name in ("dense", "uniform", "PPF") if name in known]
    tiles = [
        Tile(
            f"{entry.policy} · {_size(entry)}", str(entry.measured),
            "perplexity on the labelling part",
        )
        for entry in chosen
    ]  # fmt: skip
    if gained := gain(known["PPF"]):
        value, note = signed_with_error(*gained), "perplexity on the selection part"
        tiles.insert(0, Tile(f"PPF against {baseline(known['PPF'])}", value, note))
    return tiles


def _size(entry: Entry) -> str:
    return f"ratio {percent(entry.ratio)}" if entry.bytes is None else mebibytes(entry.bytes)


def _results(report: SearchReport) -> list[ReportSection]:
    drawn = [
        replace(entry, predicted=None) if entry.measured and entry.policy != "PPF" else entry
        for entry in report.entries
    ]
    predictions = "Predictions were made before the policy was measured."
    pairs = [(e.predicted, e.measured) for e in report.entries if e.predicted and e.measured]
    if all(isclose(predicted.nll, measured.nll, rel_tol=1e-6) for predicted, measured in pairs):
        predictions = "The search measured policies; it made no predictions."
    if report.dynamic and all(entry.measured for entry in report.entries):
        predictions = "The agent's predictions lie between the losses measured in its searches."
    elif report.dynamic:
        predictions = (
            "Policies without a perplexity on the labelling part are only predicted, by the last"
            " predictor."
        )
    note = f"{predictions} The choice does not depend on the test part of the text."
    return [
        ReportSection(
            "Results", f"{report.measured_on} {note}", name="results",
            table=score_table(report.entries, report.names), wide=True,
            folded=len(report.entries) > _LONG,
        ),
        *_selection(report),
        ReportSection(
            f"Perplexity against {_axis(report)}", report.measured_on, name="curve",
            figure=ratio_curve(drawn, report.labels, _axis(report)),
        ),
    ]  # fmt: skip


def _axis(report: SearchReport) -> str:
    sized = any(entry.bytes is not None for entry in report.entries)
    return "share of bytes saved" if sized else "pruning ratio"


def _selection(report: SearchReport) -> list[ReportSection]:
    table = selection_table(report.candidates or report.entries, report.names)
    if not table.rows:
        return []
    note = (
        "The policies of lowest perplexity on the labelling part. The search did not use the"
        " selection part. ± is one standard error over the windows; that of a change is over paired"
        " windows."
    )
    return [ReportSection("Selection part", note, name="selection", table=table, wide=True)]


def _policies(report: SearchReport) -> list[ReportSection]:
    sites, counted = report.space.sites, "bytes" if report.words else "units"
    even = " Uniform is an equal share of bytes at every site." if report.words else ""
    columns: dict[str, Sequence[Cell]] = {"site": [site.name for site in sites]}
    if not report.words:
        columns["units"] = [site.units for site in sites]
    for name, kept in (report.words or report.policies).items():
        columns[f"kept, {name}" if name else "kept"] = kept
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    shown = [Column(n, None if isinstance(c[0], str) else str) for n, c in columns.items()]
    return [
        ReportSection(
            f"The {'policies' if report.dynamic else 'policy'}, and uniform below",
            f"Share of the {counted} that each site keeps, in per cent.{even}",
            name="policy",
            figure=policy_heatmap(report.space, report.policies),
            table=Table(shown, rows),
            folded=True,
            wide=True,
        )
    ]


def _predictions(report: SearchReport) -> list[ReportSection]:
    if not report.accuracy and not report.candidates:
        return []
    known = report.accuracy or Accuracy([], [], [], [], {}, [])
    columns = (known.predicted, known.std, known.measured, known.ratio)
    figure = scatter(*columns, searched=report.candidates)
    note = (
        "Policies that the predictor was not fitted to when it predicted them. Bars are one"
        " standard deviation."
    )
    return [ReportSection("Predicted against measured", note, name="predictions", figure=figure)]


def _accuracy(report: SearchReport) -> list[ReportSection]:
    parts = []
    if report.proposals:
        note = "Policies that the search proposed. Predictions were made before the measurement."
        parts.append(
            ReportSection(
                "Accuracy on proposals", note, name="accuracy_on_proposals",
                table=accuracy_table(report.proposals, []),
                warning=coverage_warning(report.proposals, [], "proposals"), wide=True,
            )
        )  # fmt: skip
    found = report.accuracy
    if found and found.metrics:
        note = "On random policies outside the fit, for all ratios."
        parts.append(
            ReportSection(
                "Accuracy on random policies", note, name="accuracy",
                table=accuracy_table(found.metrics, []),
                warning=coverage_warning(found.metrics, found.bands, "random policies"),
                wide=True,
            )
        )  # fmt: skip
        if found.bands:
            parts.append(
                ReportSection(
                    "Accuracy by ratio", "The same for ranges of ratios.", name="accuracy_by_ratio",
                    table=accuracy_table(found.metrics, found.bands), folded=True, wide=True,
                )
            )  # fmt: skip
    return parts


def _training(report: SearchReport) -> list[ReportSection]:
    if not report.history:
        return []
    note = f"Metrics of {report.agent} on the predictor. Dotted lines mark where a round begins."
    figure = curves(report.history)
    return [ReportSection("Training of the agent", note, name="training", figure=figure, wide=True)]


def _measured(report: SearchReport) -> list[ReportSection]:
    """All measured policies, and the Pareto front among them."""
    found = []
    if report.candidates:
        even = baseline(report.entries[-1]).capitalize()
        note = f"{even}, the allocation rules, and the proposals of all rounds; best first."
        table = score_table(report.candidates)
        found.append(
            ReportSection(
                "All policies measured at this ratio", note, name="candidates", table=table,
                folded=True, wide=True,
            )
        )  # fmt: skip
    if report.pareto:
        note = (
            "All measured policies, and the shares of two costs that they save. No policy is"
            " better than one on the front in perplexity and both costs."
        )
        found.append(
            ReportSection(
                "Pareto front", note, name="pareto", table=report.pareto.table, folded=True,
                figure=pareto_front(*vars(report.pareto).values()),
            )
        )  # fmt: skip
    return found


def _run(report: SearchReport) -> list[ReportSection]:
    return [
        ReportSection("Settings", facts=report.settings),
        ReportSection(
            "Time", f"{report.evaluations} policies were measured on the real model.",
            table=times_table(report.seconds),
        ),
        ReportSection("Machine", facts=report.machine),
        ReportSection("Files", facts=report.paths, code=True),
        ReportSection("Signatures of the artefacts", facts=report.signatures, code=True),
    ]  # fmt: skip
