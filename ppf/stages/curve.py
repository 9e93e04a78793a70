"""What a dynamic search leaves: the agent, its curve as summary.json and as a plot."""

import json
from collections.abc import Mapping
from pathlib import Path

from ppf.report.plots import ratio_curve
from ppf.report.scores import Entry, Score
from ppf.report.style import save_png
from ppf.stages.dynamic import Curve, Learnt
from ppf.stages.results import scores


def entries(curve: Curve) -> list[Entry]:
    """The agent and uniform pruning at each ratio."""
    rows = []
    for i, ratio in enumerate(curve.ratios):
        mean, std = curve.predicted[i].tolist()
        even = Score(float(curve.uniform_measured[i]))
        found = Score(float(curve.measured[i]))
        rows.append(Entry("uniform", ratio, measured=even))
        rows.append(Entry("PPF", ratio, measured=found, predicted=Score(mean, std)))
    return rows


def write(learnt: Learnt, seconds: Mapping[str, float], folder: Path) -> dict[str, Path]:
    """Writes all files of a dynamic search and returns them by what they are."""
    paths = {
        "agent": learnt.agent.save(folder),
        "summary": folder / "summary.json",
        "curve": folder / "curve.png",
    }
    shown = entries(learnt.curve)
    results = [{"policy": e.policy, "ratio": e.ratio, **scores(e)} for e in shown]
    kept = {str(r): k for r, k in zip(learnt.curve.ratios, learnt.curve.kept.tolist(), strict=True)}
    content = {"results": results, "part": "labelling", "seconds": dict(seconds), "kept": kept}
    paths["summary"].write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    save_png(ratio_curve(shown), paths["curve"])
    return paths
