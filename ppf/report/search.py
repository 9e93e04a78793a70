"""The report of a search, static or dynamic."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ppf.predictor.scores import coverage_warning
from ppf.report.headline import curve_headline, search_headline
from ppf.report.page import Page, Part, Tile
from ppf.report.plots import Row, curves, pareto_front, policy_heatmap, ratio_curve, scatter
from ppf.report.scores import Entry, LogPerplexity, decimal, percent
from ppf.report.tables import Cell, Column, Table, accuracy_table, score_table, times_table
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
        entries: dense, uniform and rules as far as they were measured, and "PPF".
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
    history: Sequence[Row]
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
    def scores(self) -> Table:
        """The table of all entries, in which PPF's row names the agent."""
        return score_table(self.entries, {"PPF": f"PPF ({self.agent})"})


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
        for name, score in known.items():
            if score:
                metrics[f"{entry.policy}/{name}{at}"] = score.perplexity
            if score and score.error is not None:
                metrics[f"{entry.policy}/{name}_error{at}"] = score.error
        if entry.parameters:
            metrics[f"{entry.policy}/parameters{at}"] = entry.parameters
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
    return [
        Tile(
            f"{entry.policy} · ratio {percent(entry.ratio)}", str(entry.measured),
            "measured perplexity",
        )
        for entry in chosen
    ]  # fmt: skip


def _results(report: SearchReport) -> list[Part]:
    drawn = [
        entry if entry.policy == "PPF" else replace(entry, predicted=None)
        for entry in report.entries
    ]
    note = (
        "± is one standard error over the windows. Predictions were made before the policy was"
        " measured. The choice does not depend on the test part of the text."
    )
    return [
        Part(
            "Results", f"{report.measured_on} {note}", name="results", table=report.scores,
            wide=True, folded=len(report.entries) > _LONG,
        ),
        Part(
            "Perplexity against pruning ratio", report.measured_on, name="curve",
            figure=ratio_curve(drawn, report.labels),
        ),
    ]  # fmt: skip


def _policies(report: SearchReport) -> list[Part]:
    sites, counted = report.space.sites, "bytes" if report.words else "units"
    columns: dict[str, Sequence[Cell]] = {"site": [site.name for site in sites]}
    if not report.words:
        columns["units"] = [site.units for site in sites]
    for name, kept in (report.words or report.policies).items():
        columns[f"kept, {name}" if name else "kept"] = kept
    rows = [list(row) for row in zip(*columns.values(), strict=True)]
    shown = [Column(n, None if isinstance(c[0], str) else str) for n, c in columns.items()]
    return [
        Part(
            "The policies" if report.dynamic else "The policy, and uniform pruning below it",
            f"Share of the {counted} that each site keeps, in per cent.",
            name="policy",
            figure=policy_heatmap(report.space, report.policies),
            table=Table(shown, rows),
            folded=True,
            wide=True,
        )
    ]


def _predictions(report: SearchReport) -> list[Part]:
    known = report.accuracy or Accuracy([], [], [], [], {}, [])
    columns = (known.predicted, known.std, known.measured, known.ratio)
    figure = scatter(*columns, searched=report.candidates)
    note = "Policies that the predictor was not fitted to. Bars are one standard deviation."
    return [Part("Predicted against measured", note, name="predictions", figure=figure)]


def _accuracy(report: SearchReport) -> list[Part]:
    parts = []
    if report.proposals:
        note = "Policies that the search proposed. Predictions were made before the measurement."
        parts.append(
            Part(
                "Accuracy on proposals", note, name="accuracy_on_proposals",
                table=accuracy_table(report.proposals, []).without_empty_columns(),
                warning=coverage_warning(report.proposals, [], "proposals"), wide=True,
            )
        )  # fmt: skip
    found = report.accuracy
    if found and found.metrics:
        note = "On random policies outside the fit, for all ratios and for ranges of ratios."
        parts.append(
            Part(
                "Accuracy on random policies", note, name="accuracy",
                table=accuracy_table(found.metrics, found.bands),
                warning=coverage_warning(found.metrics, found.bands, "random policies"),
                wide=True,
            )
        )  # fmt: skip
    return parts


def _training(report: SearchReport) -> list[Part]:
    if not report.history:
        return []
    note = f"Metrics of {report.agent} on the predictor. Dotted lines mark where a round begins."
    figure = curves(report.history)
    return [Part("Training of the agent", note, name="training", figure=figure, wide=True)]


def _measured(report: SearchReport) -> list[Part]:
    """All measured policies, and the Pareto front among them."""
    found = []
    if report.candidates:
        note = "Uniform pruning, the allocation rules, and the proposals of all rounds; best first."
        table = score_table(report.candidates)
        found.append(
            Part(
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
            Part(
                "Pareto front", note, name="pareto", table=report.pareto.table, folded=True,
                figure=pareto_front(*vars(report.pareto).values()),
            )
        )  # fmt: skip
    return found


def _run(report: SearchReport) -> list[Part]:
    return [
        Part("Settings", facts=report.settings),
        Part(
            "Time", f"{report.evaluations} policies were measured on the real model.",
            table=times_table(report.seconds),
        ),
        Part("Machine", facts=report.machine),
        Part("Files", facts=report.paths, code=True),
        Part("Signatures of the artefacts", facts=report.signatures, code=True),
    ]  # fmt: skip
