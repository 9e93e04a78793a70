"""Rows for the table of a sweep, from the summary.json of a search."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ppf.report.scores import NO_RULES

_KINDS = {
    "test": "test",
    "measured": "labelling",
    "selection": "selection",
    "predicted": "predicted",
}
_PROPOSALS = ("policies", "equal_ratio", "equal_ratio_low", "equal_ratio_high", "coverage")


def summary_rows(summary: Path) -> list[dict[str, float | None]]:
    """Rows for the table of a sweep: perplexities of the results, one row for each ratio."""
    content: Mapping[str, Any] = json.loads(summary.read_text(encoding="utf-8"))
    rows, uniform = list[dict[str, float | None]](), dict[str, float | None]()
    others = [r for r in content["results"] if r["policy"] not in NO_RULES or "also" in r]
    measured = [row["measured"]["perplexity"] for row in others if "measured" in row]
    rules = [perplexity for perplexity in measured if perplexity is not None]
    for row in content["results"]:
        found: dict[str, float | None] = {
            f"{name}_ppl": row[kind]["perplexity"] for kind, name in _KINDS.items() if kind in row
        }
        if row["policy"] == "uniform":
            uniform = {f"uniform_{name}": value for name, value in list(found.items())[:1]}
        elif row["policy"] == "PPF":
            found["predicted_std"] = row.get("predicted", {}).get("std")  # nats per token
            rows.append({"ratio": row["ratio"], **found, **uniform})
    scores = content.get("proposals", {})
    best = {"best_rule_labelling_ppl": min(rules)} if rules and len(rows) == 1 else {}
    more = best | {f"proposals_{name}": scores[name] for name in _PROPOSALS if name in scores}
    return [row | more for row in rows]
