"""The report of a search, at one ratio or at all: everything is read from its summary.json."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers import Logger

from ppf.predictor.scores import coverage_warning
from ppf.report.page import Page, ReportSection
from ppf.report.plots import curves, pareto_front, policy_heatmap, ratio_curve, scatter
from ppf.report.publish import log_artifact, publish
from ppf.report.scores import change, decimal, mebibytes, percent, signed_percent
from ppf.report.tables import (
    Cell,
    Column,
    Table,
    accuracy_table,
    error,
    print_line,
    print_table,
    times_table,
)

SearchSummary = Mapping[str, Any]
"""The contents of a search's summary.json; see `ppf.stages.results`."""
PolicyRow = Mapping[str, Any]
_DRAWN = 6  # most ratios in the heatmap
_PREDICTED = {
    "static": "Predictions are those of the round that measured the policy.",
    "chain": "The agent's predictions interpolate between the losses measured in its searches.",
    "dynamic": "Rows without a perplexity on the labelling part are predicted by the last round.",
}
_POINTS = ("predicted", "std", "measured", "ratio")
_SCORES = ("policies", "equal_ratio", "equal_ratio_low", "equal_ratio_high", "coverage")


def publish_search(folder: Path, loggers: Sequence[Logger]) -> None:
    """Writes report.html beside a summary.json, gives everything to the loggers, and prints it."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    shown, numbers = page(summary), metrics(summary)
    if used := summary["predictor_folder"]:
        name = f"{summary['model']}-predictor"
        log_artifact(loggers, [Path(used)], name, "predictor", used=True)
    publish(loggers, shown, numbers, folder)
    kind = "policy" if summary["mode"] == "static" else "agent"
    files = sorted(folder.glob(f"{kind}.*"))
    log_artifact(loggers, files, f"{summary['model']}-{kind}", kind, metadata=numbers)
    measured = [row for row in summary["results"] if "measured" in row]
    print_table(scores_table(measured, summary["method"]))
    print_line(shown.sections[0].note)
    print_table(times_table(summary["seconds"]))
    for file in (*files, folder / "summary.json", folder / "report.html"):
        print_line(f"{file.stem:<8} {file}")
    for purpose, command in summary["next_commands"].items():
        print_line(f"{purpose}: {command}")


def page(summary: SearchSummary) -> Page:
    """The page of a search."""
    settings, cost = summary["settings"], f"{summary['evaluations']} models were measured"
    return Page(
        title=summary["title"],
        command=summary["command"],
        headline=_headline(summary),
        sections=[
            *_results(summary),
            *_predictions(summary),
            *_training(summary),
            *_measured(summary),
            ReportSection("Settings", facts=settings),
            ReportSection(
                "Cost",
                f"{cost}; measurements and gradients read {summary['token_passes']:,} tokens.",
                table=times_table(summary["seconds"]),
            ),
            ReportSection("Machine", facts=summary["machine"]),
            ReportSection("Signatures of the artefacts", facts=summary["signatures"]),
        ],
        next_commands=summary["next_commands"],
    )


def metrics(summary: SearchSummary) -> dict[str, float]:
    """The metrics of a search for loggers, by name; "PPF/perplexity/0.3" for all ratios."""
    found: dict[str, float] = {}
    kinds = {"measured": "", "selection": "selection_", "test": "test_", "predicted": "predicted_"}
    for row in summary["results"]:
        at = "" if summary["mode"] == "static" else f"/{row['ratio']:g}"
        for policy in (row["policy"], *row.get("also", [])):
            for kind, prefix in kinds.items():
                if (value := row.get(kind, {}).get("perplexity")) is not None:
                    found[f"{policy}/{prefix}perplexity{at}"] = value
            found[f"{policy}/parameters{at}"] = row["parameters"]
            found[f"{policy}/ratio{at}"] = row["ratio"]
    found |= {f"proposals/{name}": score for name, score in summary["proposals"].items()}
    found |= {f"seconds/{name}": spent for name, spent in summary["seconds"].items()}
    found["seconds/total"] = sum(summary["seconds"].values())
    return found | {key: summary[key] for key in ("evaluations", "token_passes")}


def rows_of_run(summary: SearchSummary) -> list[dict[str, Any]]:
    """The rows of a search in the table of a multirun: one for each ratio of PPF."""
    kinds = {"test": "test", "measured": "labelling", "selection": "selection"}
    kinds |= {"predicted": "predicted"}
    rows, uniform, static = list[dict[str, Any]](), dict[str, Any](), summary["mode"] == "static"
    for row in summary["results"]:
        found = {f"{kinds[k]}_ppl": row[k]["perplexity"] for k in kinds if k in row}
        if row["policy"] == "uniform":
            uniform = {f"uniform_{name}": value for name, value in list(found.items())[:1]}
        elif row["policy"] == "PPF":
            # A sweep compares jobs by the requested ratio.
            found |= {"ratio": summary["asked"][0] if static else row["ratio"]}
            found["predicted_std"] = row["predicted"]["std"]  # nats per token
            if "bytes" in row:
                found["matrices_mib"] = row["bytes"] / 2**20
            rows.append(found | uniform)
    keys = ("method", "evaluations", "token_passes")
    same = {key: summary[key] for key in keys} | {"seed": summary["settings"]["seed"]}
    scores = summary["proposals"]
    same |= {f"proposals_{name}": scores[name] for name in _SCORES if name in scores}
    named = (r for r in summary["results"] if r["policy"] not in ("dense", "uniform", "PPF"))
    rules = [r for r in summary["results"] if "also" in r] + list(named)
    losses = [r["measured"]["perplexity"] for r in rules if "measured" in r]
    if static and (known := [loss for loss in losses if loss is not None]):
        same["best_rule_labelling_ppl"] = min(known)
    return [row | same for row in rows]


def scores_table(rows: Sequence[PolicyRow], method: str) -> Table:
    """One row for each policy: its perplexities on each part, and its prediction.

    Args:
        method: the name of PPF's rows, as in "PPF (gradient)".
    """
    sized = any("bytes" in row for row in rows)
    size = Column("matrices", mebibytes) if sized else Column("ratio", percent)
    columns = [
        Column("policy"),
        size,
        Column("labelling part", decimal),
        Column("selection part", decimal),
        error("± standard error, selection part"),
        Column("against uniform", signed_percent),
        Column("test part", decimal),
        Column("predicted", decimal),
    ]
    # The search did not choose by the selection part.
    kind = "selection" if any("selection" in row for row in rows) else "measured"
    cells = [_scores(row, rows, kind, method) for row in rows]
    return Table(columns, cells).without_empty_columns()


def _scores(row: PolicyRow, rows: Sequence[PolicyRow], kind: str, method: str) -> list[Cell]:
    """The cells of a row.

    Args:
        kind: of the score that is compared with that of uniform pruning at the nearest ratio.
    """
    names = [method if row["policy"] == "PPF" else row["policy"], *row.get("also", [])]
    selection, predicted = row.get("selection", {}), row.get("predicted", {})
    std_error = selection.get("std_error")
    even = [r for r in rows if r["policy"] == "uniform" and kind in r]
    near = min(even, key=lambda r: abs(r["ratio"] - row["ratio"]), default={})
    gained = change(row.get(kind, {}).get("perplexity"), near.get(kind, {}).get("perplexity"))
    return [
        " = ".join(names),
        row.get("bytes", row["ratio"]),
        row.get("measured", {}).get("perplexity"),
        selection.get("perplexity"),
        None if std_error is None else std_error * selection["perplexity"],
        None if row["policy"] in ("dense", "uniform") else gained,
        row.get("test", {}).get("perplexity"),
        predicted.get("perplexity"),
    ]


def _headline(summary: SearchSummary) -> str:
    """Perplexities of dense model, uniform pruning and PPF at the middle one of the ratios."""
    rows = [row for row in summary["results"] if "measured" in row]
    own = [row for row in rows if row["policy"] == "PPF"]
    ratio = own[len(own) // 2]["ratio"]
    names = {"dense": "dense", "uniform": "uniform", "PPF": summary["method"]}
    shown = {
        names[row["policy"]]: row["measured"]["perplexity"]
        for row in sorted(rows, key=lambda row: -abs(row["ratio"] - ratio))
        if row["policy"] in names
    }
    texts = [f"{n} {'inf' if shown[n] is None else decimal(shown[n])}" for n in names.values()]
    return f"Perplexity on the labelling part at {percent(ratio)}: {', '.join(texts)}."


def _results(summary: SearchSummary) -> Iterator[ReportSection]:
    rows, settings, names = summary["results"], summary["settings"], {"PPF": summary["method"]}
    note = (
        f"Labelling part of {settings['text']}: {settings['labelling part']}. Selection part:"
        f" {settings['selection part']}. {_PREDICTED[summary['mode']]}"
    )
    table = scores_table(rows, summary["method"])
    yield ReportSection("Results", note, name="results", table=table)
    axis = "share of bytes saved" if any("bytes" in row for row in rows) else "pruning ratio"
    figure = ratio_curve(rows, names, summary["labels"], axis)
    yield ReportSection(f"Perplexity against {axis}", name="curve", figure=figure)


def _policies(summary: SearchSummary) -> dict[str, PolicyRow]:
    """PPF and uniform pruning by name; at some of the ratios, if there are many."""
    rows = [row for row in summary["results"] if row["policy"] in ("uniform", "PPF")]
    if summary["mode"] == "static":
        return {row["policy"]: row for row in reversed(rows)}
    ratios = sorted({row["ratio"] for row in rows})
    drawn = ratios[:: -(-len(ratios) // _DRAWN)]
    found = {f"{percent(r['ratio'])}, {r['policy']}": r for r in rows if r["ratio"] in drawn}
    return dict(sorted(found.items(), key=lambda item: item[1]["ratio"]))


def _sites(summary: SearchSummary, policies: Mapping[str, PolicyRow]) -> Table:
    """One row for each site: how many of its units each policy keeps."""
    columns = [Column("site"), *(Column(f"kept, {name}") for name in policies)]
    rows: list[list[Cell]] = []
    for site, units in summary["units"].items():
        kept = [f"{row['kept'][site]} of {units}" for row in policies.values()]
        types = [row.get("types", {}).get(site) for row in policies.values()]
        cells = zip(kept, types, strict=True)
        rows.append([site, *(f"{k}, {type}" if type else k for k, type in cells)])
    return Table(columns, rows)


def _predictions(summary: SearchSummary) -> Iterator[ReportSection]:
    policies, found = _policies(summary), summary["predictor"] or {}
    if found or summary["candidates"]:
        note = (
            "Policies that the predictor was not fitted to when it predicted them. Bars are one"
            " standard deviation."
        )
        predicted, std, measured, ratio = (found.get(name, []) for name in _POINTS)
        figure = scatter(predicted, std, measured, ratio, summary["candidates"])
        yield ReportSection("Predicted against measured", note, name="predictions", figure=figure)
    figure = policy_heatmap({name: row["share"] for name, row in policies.items()})
    note = "Share that each site keeps, in per cent: of its units, or of its bytes (budget=bytes)."
    table = _sites(summary, policies)
    yield ReportSection("The policy", note, name="policy", figure=figure, table=table)
    for title, name, scores in (
        ("Accuracy on proposals", "accuracy_on_proposals", summary["proposals"]),
        ("Accuracy on random policies", "accuracy", found.get("scores")),
    ):
        if scores:
            note = coverage_warning(scores, "policies")
            table = accuracy_table(scores)
            yield ReportSection(title, note, name=name, table=table)


def _training(summary: SearchSummary) -> Iterator[ReportSection]:
    if summary["history"]:
        note = "Metrics of the agent on the predictor. Dotted lines mark where a round begins."
        figure = curves(summary["history"])
        yield ReportSection("Training of the agent", note, name="training", figure=figure)


def _measured(summary: SearchSummary) -> Iterator[ReportSection]:
    """All measured policies, and the Pareto front among them."""
    if summary["candidates"]:
        note = "Uniform pruning, the allocation rules, and the proposals of all rounds; best first."
        table = scores_table(summary["candidates"], summary["method"])
        title = "All policies measured at this ratio"
        yield ReportSection(title, note, name="candidates", table=table)
    if found := summary["pareto"]:
        note = (
            "All measured policies, and the shares of two costs that they save. No policy is"
            " better than one on the front in perplexity and both costs."
        )
        points = zip(found["saved"], found["nll"], found["front"], strict=True)
        rows: list[list[Cell]] = sorted([x, y, nll] for (x, y), nll, best in points if best)
        heads = [Column(f"{cost} saved", percent) for cost in found["costs"]]
        table = Table([*heads, Column("nats per token", "{:.4f}".format)], rows)
        figure = pareto_front(**found)
        yield ReportSection("Pareto front", note, name="pareto", figure=figure, table=table)
