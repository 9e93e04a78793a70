"""The report of a search, at one ratio or at all: everything is read from its summary.json."""

from collections.abc import Mapping, Sequence
from typing import Any

from ppf.predictor.scores import coverage_warning
from ppf.records.run import Cell
from ppf.report.numbers import decimal, duration, mebibytes, percent, signed_percent
from ppf.report.page import Page, ReportSection
from ppf.report.plots import curves, policy_heatmap, ratio_curve, scatter
from ppf.report.tables import Table, accuracy_table

SearchSummary = Mapping[str, Any]
"""The contents of a search's summary.json; see `ppf.stages.results`."""
PolicyRow = Mapping[str, Any]
_LOGGED = ("ratio", "parameters", "measured", "selection", "test", "predicted")
_DRAWN = 6  # most ratios in the heatmap


def page(summary: SearchSummary) -> Page:
    """The page of a search."""
    rows, settings = summary["results"], summary["settings"]
    note = (
        f"Labelling part of {settings['text']}: {settings['labelling part']}. Selection part:"
        f" {settings['selection part']}."
    )
    cost = (
        f"{summary['evaluations']} models were measured; measurements and gradients read"
        f" {summary['token_passes']:,} tokens."
    )
    if (promised := summary.get("promised")) is not None:
        cost += (
            " The search ended early: by their 90 % intervals, the next proposals could lower the"
            f" perplexity by {percent(max(promised, 0))} at most."
        )
    seconds = summary["seconds"] | {"total": sum(summary["seconds"].values())}
    parts = [{"part": part, "time": spent} for part, spent in seconds.items()]
    if delivered := _delivered(summary):
        rows = [*rows, delivered]
        note += " The last row is what prune.py writes; all others have one-shot compensation."
    sections = [
        ReportSection("Results", note, "results", table=scores_table(summary, rows)),
        ReportSection("Cost", cost, table=Table(parts, {"time": duration})),
        _policies(summary),
    ]
    if summary["mode"] != "static":
        curve = ratio_curve(rows, summary["method"], summary["labels"])
        sections.insert(2, ReportSection("Perplexity against pruning ratio", "", "curve", curve))
    found, candidates = summary["predictor"] or {}, summary["candidates"]
    if found or candidates:
        note = "Predictions made before the measurement. Bars are one standard deviation."
        figure = scatter(found, candidates)
        sections.append(ReportSection("Predicted against measured", note, "predictions", figure))
    for title, name, scores in (
        ("Accuracy on proposals", "accuracy_on_proposals", summary["proposals"]),
        ("Accuracy on random policies", "accuracy", found.get("scores")),
    ):
        if scores:
            note, table = coverage_warning(scores, "policies"), accuracy_table(scores)
            sections.append(ReportSection(title, note, name, table=table))
    if history := summary["history"]:
        note = "Metrics of the agent on the predictor. Dotted lines mark where a round begins."
        sections.append(ReportSection("Training of the agent", note, "training", curves(history)))
    if candidates:
        title = "All policies measured at this ratio"
        note = "Uniform pruning, the allocation rules, and the proposals of all rounds; best first."
        table = scores_table(summary, candidates)
        sections.append(ReportSection(title, note, "candidates", table=table))
    return Page(summary["title"], _headline(summary), sections, summary)


def metrics(summary: SearchSummary) -> dict[str, Any]:
    """The metrics of a search for loggers; of a search for all ratios, below policy and ratio."""
    found: dict[str, Any] = {}
    for row in summary["results"]:
        numbers = {key: row[key] for key in _LOGGED if key in row}
        for policy in (row["policy"], *row.get("also", [])):
            at = "" if summary["mode"] == "static" else f"/{row['ratio']:g}"
            found[policy + at] = numbers
    seconds = summary["seconds"] | {"total": sum(summary["seconds"].values())}
    same = {key: summary[key] for key in ("proposals", "evaluations", "token_passes")}
    return found | same | {"seconds": seconds}


def scores_table(summary: SearchSummary, rows: Sequence[PolicyRow]) -> Table:
    """One row for each policy: its perplexities on each part, and its prediction."""
    # The search did not choose by the selection part.
    kind = "selection" if any("selection" in row for row in rows) else "measured"
    size, show = ("matrices", mebibytes) if any("bytes" in r for r in rows) else ("ratio", percent)
    uniform = [row for row in rows if row["policy"] == "uniform" and kind in row]
    dense = next((_perplexity(r, "measured") for r in rows if r["policy"] == "dense"), None)
    published, found = _best_published(summary, rows), list[dict[str, Cell]]()
    for row in rows:
        method = summary["method"] if row["policy"] == "PPF" else row["policy"]
        near = min(uniform, key=lambda r: abs(r["ratio"] - row["ratio"]), default={})
        own, other = _perplexity(row, kind), _perplexity(near, kind)
        known, pruned = _perplexity(row, "measured"), row["policy"] != "dense"
        compared = row["policy"] not in ("dense", "uniform")
        error, selection = row.get("selection", {}).get("std_error"), _perplexity(row, "selection")
        found.append(
            {
                "policy": " = ".join([method, *row.get("also", [])])
                + " (best published rule)" * (row is published),
                size: row.get("bytes", row["ratio"]),
                "labelling part": known,
                "against dense": known / dense - 1 if known and dense and pruned else None,
                "selection part": selection,
                "± selection part": selection * error if selection and error else None,
                "against uniform": own / other - 1 if compared and own and other else None,
                "test part": _perplexity(row, "test"),
                "predicted": _perplexity(row, "predicted"),
            }
        )
    changes = dict.fromkeys(("against dense", "against uniform"), signed_percent)
    return Table(found, {size: show, **changes})


def _delivered(summary: SearchSummary) -> PolicyRow | None:
    """PPF's policy with sequential compensation, if that is better on other windows."""
    got, (*_, own) = summary.get("delivered"), summary["results"]
    if not got or got["one_shot"]["nll"] <= got["sequential"]["nll"]:
        return None
    part = "measured" if got["part"] == "labelling" else "selection"
    new = {"policy": f"{summary['method']}, sequential compensation", part: got["sequential"]}
    new |= {"test": got.get("test", {})}
    return new | {key: own[key] for key in ("ratio", "bytes") if key in own}


def _best_published(summary: SearchSummary, rows: Sequence[PolicyRow]) -> PolicyRow | None:
    """The published rule of lowest loss on the labelling part, after a search at one ratio."""
    names = {*summary.get("published_rules", [])} if summary["mode"] == "static" else set()
    rules = [row for row in rows if names & {row["policy"], *row.get("also", [])}]
    known = [row for row in rules if _perplexity(row, "measured")]
    return min(known, key=lambda row: row["measured"]["nll"], default=None)


def _perplexity(row: PolicyRow, kind: str) -> float | None:
    """None: not known, or not finite."""
    value: float | None = row.get(kind, {}).get("perplexity")
    return value


def _headline(summary: SearchSummary) -> str:
    """Perplexities of dense model, uniform pruning and PPF at the middle one of the ratios."""
    rows = [row for row in summary["results"] if "measured" in row]
    own = [row for row in rows if row["policy"] == "PPF"]
    ratio = own[len(own) // 2]["ratio"]
    near = sorted(rows, key=lambda row: -abs(row["ratio"] - ratio))
    known = {row["policy"]: _perplexity(row, "measured") for row in near}
    names = {"dense": "dense", "uniform": "uniform", "PPF": summary["method"]}
    texts = [f"{name} {decimal(known[policy])}" for policy, name in names.items()]
    if known["PPF"] and known["dense"]:
        texts[-1] += f" ({signed_percent(known['PPF'] / known['dense'] - 1)} against dense)"
    if rule := _best_published(summary, rows):
        texts.insert(2, f"best published rule {decimal(_perplexity(rule, 'measured'))}")
    sizes = {row["policy"]: row["parameters"] for row in near}
    removed = signed_percent(sizes["PPF"] / sizes["dense"] - 1)
    after = ""
    if _delivered(summary):
        got = summary["delivered"]
        before, then = (decimal(got[key]["perplexity"]) for key in ("one_shot", "sequential"))
        after = f" Sequential compensation: {then} instead of {before} on the {got['part']} part."
    return (
        f"Parameters of the whole model: {removed}. Perplexity on the labelling part at"
        f" {percent(ratio)}: {', '.join(texts)}.{after}"
        + " Without an expert, a token computes as much as before."
        * any(site.endswith(".experts") for site in summary["units"])
    )


def _policies(summary: SearchSummary) -> ReportSection:
    """What PPF and uniform pruning keep; at some of the ratios, if there are many."""
    rows = [row for row in summary["results"] if row["policy"] in ("uniform", "PPF")]
    ratios = sorted({row["ratio"] for row in rows})
    drawn = ratios[:: -(-len(ratios) // _DRAWN)]
    found = {f"{r['policy']}, {percent(r['ratio'])}": r for r in rows if r["ratio"] in drawn}
    sites: list[dict[str, Cell]] = []
    for site, units in summary["units"].items():
        kept = {name: f"{row['kept'][site]} of {units}" for name, row in found.items()}
        kept |= {n: f"{kept[n]}, {r['types'][site]}" for n, r in found.items() if "types" in r}
        sites.append({"site": site, **kept})
    note = "Share that each site keeps, in per cent: of its units, or of its bytes (budget=bytes)."
    figure = policy_heatmap({name: row["share"] for name, row in found.items()})
    return ReportSection("The policy", note, "policy", figure, Table(sites))
