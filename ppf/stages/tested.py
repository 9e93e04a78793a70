"""Perplexities on the test part of the text, measured after a search has chosen."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ppf.artefacts import write_json
from ppf.evaluation.perplexity import mean_nll
from ppf.progress import say
from ppf.report.scores import LogPerplexity
from ppf.stages.prepare import PruningContext
from ppf.stages.prune import pruned_to

_KINDS = {
    "test": "test",
    "measured": "labelling",
    "selection": "selection",
    "predicted": "predicted",
}
_PROPOSALS = ("policies", "equal_ratio", "equal_ratio_low", "equal_ratio_high", "coverage")
Named = tuple[str, list[int]]
"""A policy's name in summary.json, and the units that it keeps at each site."""


def add_test(
    context: PruningContext,
    summary: Path,
    policies: Sequence[Named],
    *,
    sequential: bool,
    batch: int,
) -> None:
    """Measures policies on the test part, on this rank alone, and adds that to a summary.json.

    Args:
        policies: those of the summary's rows, in their order; rows of other names are left out.
        sequential: re-estimate the compensation where that lowers the perplexity.
        batch: windows scored at a time.
    """
    windows = context.text.tokens("test", context.lm.tokenizer)
    content = json.loads(summary.read_text(encoding="utf-8"))
    names = {name for name, _ in policies}
    rows = [row for row in content["results"] if row["policy"] in names]
    for row, (name, kept) in zip(rows, policies, strict=True):
        with pruned_to(context, *context.decode(kept), sequential=sequential) as model:
            score = LogPerplexity(mean_nll(model, windows, batch=batch))
        say(f"Perplexity on the test part: {name} {score} at ratio {row['ratio']:.3f} (measured).")
        row["test"] = score.record()
    count, window = windows.shape
    content["test"] = {"windows": count, "window": window, "sequential": sequential}
    write_json(summary, content)


def figures(summary: Path) -> list[dict[str, float | None]]:
    """Rows for the table of a sweep: perplexities of what was found, one row for each ratio."""
    content: Mapping[str, Any] = json.loads(summary.read_text(encoding="utf-8"))
    rows, uniform = list[dict[str, float | None]](), dict[str, float | None]()
    for row in content["results"]:
        found = {
            f"{name}_ppl": row[kind]["perplexity"] for kind, name in _KINDS.items() if kind in row
        }
        if row["policy"] == "uniform":
            uniform = {f"uniform_{name}": value for name, value in list(found.items())[:1]}
        elif row["policy"] == "PPF":
            rows.append({"ratio": row["ratio"], **found, **uniform})
    scores = content.get("proposals", {})
    more = {f"proposals_{name}": scores[name] for name in _PROPOSALS if name in scores}
    return [row | more for row in rows]
