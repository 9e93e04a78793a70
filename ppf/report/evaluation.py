"""The report of an evaluation: everything is read from its evaluation.json."""

from collections.abc import Mapping, Sequence
from math import hypot
from statistics import fmean
from typing import Any

from ppf.report.numbers import decimal, mebibytes, percent, signed_percent
from ppf.report.page import Page, ReportSection
from ppf.report.tables import Table

EvaluationRecord = Mapping[str, Any]
"""The contents of an evaluation.json: `results` (a row for each model), and where it comes from."""
_PHASES = ("prefill", "decode")


def page(found: EvaluationRecord) -> Page:
    """The page of an evaluation."""
    rows, test = found["results"], f"{found['windows']} windows of {found['window']} tokens"
    first, last = rows[0], rows[-1]
    # The first model is the dense one if it is the only one without a ratio, or has that of 0.
    relative = len(rows) > 1 and not first["ratio"] and bool(last["ratio"])
    note = f"Test part of {found['text']}: {test}. ± is a standard error."
    saved = "bytes saved" if found["rounded"] else "parameters removed"
    scores = [
        {
            "model": row["name"],
            saved: row["ratio"],
            "test perplexity": row["perplexity"],
            "± test perplexity": (row["perplexity"] or 0) * (row["std_error"] or 0) or None,
            "change": _change(row, first, "perplexity") if relative else None,
            "parameters": row["parameters"],
            "weights": row["bytes"],
            "change of weights": _change(row, first, "bytes") if relative else None,
        }
        for row in rows
    ]
    shown = {saved: percent, "weights": mebibytes}
    shown |= dict.fromkeys(("change", "change of weights"), signed_percent)
    table = Table(scores, shown)
    sections = [ReportSection("Perplexity and size", note, "evaluation", table=table)]
    if speed := [
        {"model": row["name"], "batch": timed["batch"]}
        | {f"{phase}, tokens/s": timed[phase] for phase in _PHASES}
        | {"peak memory": timed["peak_bytes"]}
        for row in rows
        for timed in row["speed"]
    ]:
        rates = dict.fromkeys((f"{phase}, tokens/s" for phase in _PHASES), "{:,.1f}".format)
        table = Table(speed, {**rates, "peak memory": mebibytes})
        sections.append(ReportSection("Speed", "Medians", "speed", table=table))
    if tasks := _tasks(rows):
        shown = dict.fromkeys((row["name"] for row in rows), "{:.4f}".format)
        settings = found.get("settings", {})
        note = f"{settings.get('num_fewshot') or 'No'} solved examples in a prompt."
        if limit := settings.get("limit"):
            note += f" At most {limit} questions of each task."
        sections.append(ReportSection("Tasks", note, "tasks", table=Table(tasks, shown)))
    if answers := [
        {"text": text, "model": row["name"], "answer": row["answers"][text].strip()}
        for text in first.get("answers", {})
        for row in rows
    ]:
        note = "The most likely continuation by each model."
        sections.append(ReportSection("Answers", note, "answers", table=Table(answers)))
    title = f"Evaluation of {', '.join(row['name'] for row in rows)}"
    texts = [f"{row['name']} {decimal(row['perplexity'])}" for row in rows]
    sizes = [f"{row['name']} {mebibytes(row['bytes'])}" for row in (first, last)]
    for key, told in (("perplexity", texts), ("bytes", sizes)):
        if relative and (change := _change(last, first, key)) is not None:
            told[-1] += f" ({signed_percent(change)})"
    headline = f"Perplexity on {test} of the test part: {', '.join(texts)}."
    if relative:
        fewer = signed_percent(last["parameters"] / first["parameters"] - 1)
        headline = f"Parameters: {fewer}. Weights: {', '.join(sizes)}. {headline}"
    return Page(title, headline, sections, found)


def _tasks(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each task and metric, and for the mean over tasks, with errors of each model."""
    tasks = [*rows[0]["tasks"]]
    pairs = [(task, key) for task in tasks for key in rows[0]["tasks"][task]]
    pairs = [(task, key) for task, key in pairs if not key.endswith("_stderr")]
    found = [
        {"task": task, "metric": key}
        | {
            name: value
            for row in rows
            for name, value in (
                (row["name"], row["tasks"][task][key]),
                (f"± {row['name']}", row["tasks"][task].get(f"{key}_stderr")),
            )
        }
        for task, key in pairs
    ]
    for metric in dict.fromkeys(row["metric"] for row in found):
        same = [row for row in found if row["metric"] == metric]
        if 1 < len(same) == len(tasks):
            mean: dict[str, Any] = {"task": f"mean of {len(same)}", "metric": metric}
            for row in rows:
                values, errors = ([r[of] for r in same] for of in (row["name"], f"± {row['name']}"))
                mean[row["name"]] = fmean(values)
                mean[f"± {row['name']}"] = None if None in errors else hypot(*errors) / len(same)
            found.append(mean)
    return found


def _change(row: Mapping[str, Any], first: Mapping[str, Any], key: str) -> float | None:
    """How much larger a value is than the first model's, as a share."""
    return row[key] / first[key] - 1 if row[key] is not None and first[key] else None


def metrics(found: EvaluationRecord) -> dict[str, Any]:
    """The metrics of an evaluation for loggers: those of each model, all on the test part."""
    return {
        row["name"]: row | {"speed": {f"batch_{timed['batch']}": timed for timed in row["speed"]}}
        for row in found["results"]
    }
