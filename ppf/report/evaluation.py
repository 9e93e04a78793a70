"""The report of an evaluation: everything is read from its evaluation.json."""

from collections.abc import Mapping
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
    if tasks := [
        {"task": task, "metric": metric} | {row["name"]: row["tasks"][task][metric] for row in rows}
        for task, scores in rows[0]["tasks"].items()
        for metric in scores
    ]:
        table = Table(tasks, {row["name"]: "{:.4f}".format for row in rows})
        sections.append(ReportSection("Tasks", "Zero-shot tasks", "tasks", table=table))
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
        headline = f"Weights: {', '.join(sizes)}. {headline}"
    return Page(title, headline, sections, found)


def _change(row: Mapping[str, Any], first: Mapping[str, Any], key: str) -> float | None:
    """How much larger a value is than the first model's, as a share."""
    return row[key] / first[key] - 1 if row[key] is not None and first[key] else None


def metrics(found: EvaluationRecord) -> dict[str, Any]:
    """The metrics of an evaluation for loggers: those of each model, all on the test part."""
    return {
        row["name"]: row | {"speed": {f"batch_{timed['batch']}": timed for timed in row["speed"]}}
        for row in found["results"]
    }
