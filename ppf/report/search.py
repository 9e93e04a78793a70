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
from ppf.report.scores import change, decimal, duration, mebibytes, percent, signed_percent
from ppf.report.tables import Cell, Table, accuracy_table

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
    """Makes the report from a summary.json, and logs the predictor, and the policy or agent."""
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    model, kind = summary["model"], "policy" if summary["mode"] == "static" else "agent"
    if used := summary["predictor_folder"]:
        log_artifact(loggers, [Path(used)], f"{model}-predictor", "predictor", used=True)
    log_artifact(loggers, sorted(folder.glob(f"{kind}.*")), f"{model}-{kind}", kind)
    publish(folder, loggers, page(summary), metrics(summary))


def page(summary: SearchSummary) -> Page:
    """The page of a search."""
    rows, settings = summary["results"], summary["settings"]
    note = (
        f"Labelling part of {settings['text']}: {settings['labelling part']}. Selection part:"
        f" {settings['selection part']}. {_PREDICTED[summary['mode']]}"
    )
    cost = (
        f"{summary['evaluations']} models were measured; measurements and gradients read"
        f" {summary['token_passes']:,} tokens."
    )
    seconds = summary["seconds"] | {"total": sum(summary["seconds"].values())}
    parts = [{"part": part, "time": spent} for part, spent in seconds.items()]
    axis = "share of bytes saved" if any("bytes" in row for row in rows) else "pruning ratio"
    curve = ratio_curve(rows, {"PPF": summary["method"]}, summary["labels"], axis)
    return Page(
        title=summary["title"],
        command=summary["command"],
        headline=_headline(summary),
        sections=[
            ReportSection("Results", note, "results", table=scores_table(summary, rows)),
            ReportSection("Cost", cost, table=Table(parts, {"time": duration})),
            ReportSection(f"Perplexity against {axis}", name="curve", figure=curve),
            *_predictions(summary),
            _policies(summary),
            *_training(summary),
            *_measured(summary),
            ReportSection("Settings", facts=settings),
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


def scores_table(summary: SearchSummary, rows: Sequence[PolicyRow]) -> Table:
    """One row for each policy: its perplexities on each part, and its prediction."""
    # The search did not choose by the selection part.
    kind = "selection" if any("selection" in row for row in rows) else "measured"
    size, show = ("matrices", mebibytes) if any("bytes" in r for r in rows) else ("ratio", percent)
    found: list[dict[str, Cell]] = []
    for row in rows:
        method = summary["method"] if row["policy"] == "PPF" else row["policy"]
        even = [r for r in rows if r["policy"] == "uniform" and kind in r]
        near = min(even, key=lambda r: abs(r["ratio"] - row["ratio"]), default={})
        own, known = row["policy"] in ("dense", "uniform"), row.get("selection", {})
        error = known.get("std_error")
        found.append(
            {
                "policy": " = ".join([method, *row.get("also", [])]),
                size: row.get("bytes", row["ratio"]),
                "labelling part": _perplexity(row, "measured"),
                "selection part": _perplexity(row, "selection"),
                "± selection part": None if error is None else error * known["perplexity"],
                "against uniform": (
                    None if own else change(_perplexity(row, kind), _perplexity(near, kind))
                ),
                "test part": _perplexity(row, "test"),
                "predicted": _perplexity(row, "predicted"),
            }
        )
    return Table(found, {size: show, "against uniform": signed_percent})


def _perplexity(row: PolicyRow, kind: str) -> float | None:
    """None: not known, or not finite."""
    value: float | None = row.get(kind, {}).get("perplexity")
    return value


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


def _policies(summary: SearchSummary) -> ReportSection:
    """What PPF and uniform pruning keep; at some of the ratios, if there are many."""
    rows = [row for row in summary["results"] if row["policy"] in ("uniform", "PPF")]
    ratios = sorted({row["ratio"] for row in rows})
    drawn = ratios[:: -(-len(ratios) // _DRAWN)]
    found = {f"{r['policy']}, {percent(r['ratio'])}": r for r in rows if r["ratio"] in drawn}
    sites: list[dict[str, Cell]] = []
    for site, units in summary["units"].items():
        kept = {name: f"{row['kept'][site]} of {units}" for name, row in found.items()}
        types = {name: row.get("types", {}).get(site) for name, row in found.items()}
        texts = {n: f"{text}, {types[n]}" if types[n] else text for n, text in kept.items()}
        sites.append({"site": site, **texts})
    note = "Share that each site keeps, in per cent: of its units, or of its bytes (budget=bytes)."
    figure = policy_heatmap({name: row["share"] for name, row in found.items()})
    return ReportSection("The policy", note, "policy", figure, Table(sites))


def _predictions(summary: SearchSummary) -> Iterator[ReportSection]:
    found, candidates = summary["predictor"] or {}, summary["candidates"]
    if found or candidates:
        note = "Predictions made before the measurement. Bars are one standard deviation."
        predicted, std, measured, ratio = (found.get(name, []) for name in _POINTS)
        figure = scatter(predicted, std, measured, ratio, candidates)
        yield ReportSection("Predicted against measured", note, "predictions", figure)
    for title, name, scores in (
        ("Accuracy on proposals", "accuracy_on_proposals", summary["proposals"]),
        ("Accuracy on random policies", "accuracy", found.get("scores")),
    ):
        if scores:
            note = coverage_warning(scores, "policies")
            yield ReportSection(title, note, name, table=accuracy_table(scores))


def _training(summary: SearchSummary) -> Iterator[ReportSection]:
    if summary["history"]:
        note = "Metrics of the agent on the predictor. Dotted lines mark where a round begins."
        yield ReportSection("Training of the agent", note, "training", curves(summary["history"]))


def _measured(summary: SearchSummary) -> Iterator[ReportSection]:
    """All measured policies, and the Pareto front among them."""
    if summary["candidates"]:
        note = "Uniform pruning, the allocation rules, and the proposals of all rounds; best first."
        table = scores_table(summary, summary["candidates"])
        yield ReportSection("All policies measured at this ratio", note, "candidates", table=table)
    if found := summary["pareto"]:
        note = "No policy is better than one on the front in perplexity and both costs."
        names = [f"{cost} saved" for cost in found["costs"]]
        points = zip(found["saved"], found["nll"], found["front"], strict=True)
        best = sorted((*saved, nll) for saved, nll, chosen in points if chosen)
        rows = [dict(zip([*names, "nats per token"], point, strict=True)) for point in best]
        table = Table(rows, dict.fromkeys(names, percent))
        yield ReportSection("Pareto front", note, "pareto", pareto_front(**found), table)
