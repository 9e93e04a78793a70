"""What a dynamic search leaves: the agent, its curve as summary.json and as a plot."""

from collections.abc import Mapping
from pathlib import Path

from ppf.artefacts import write_json
from ppf.report.plots import ratio_curve
from ppf.report.scores import Entry, LogPerplexity
from ppf.report.style import save_png
from ppf.stages.dynamic import Curve, Learnt
from ppf.stages.results import summary


def entries(curve: Curve) -> list[Entry]:
    """The agent and uniform pruning at each ratio."""
    rows = []
    for i, ratio in enumerate(curve.ratios):
        mean, std = curve.predicted[i].tolist()
        even = LogPerplexity(float(curve.uniform_measured[i]))
        found = LogPerplexity(float(curve.measured[i]))
        rows.append(Entry("uniform", ratio, measured=even))
        rows.append(Entry("PPF", ratio, measured=found, predicted=LogPerplexity(mean, std)))
    return rows


def write(learnt: Learnt, seconds: Mapping[str, float], folder: Path) -> dict[str, Path]:
    """Writes all files of a dynamic search and returns them by what they are."""
    paths = {
        "agent": learnt.agent.save(folder),
        "summary": folder / "summary.json",
        "curve": folder / "curve.png",
    }
    shown = entries(learnt.curve)
    kept = {str(r): k for r, k in zip(learnt.curve.ratios, learnt.curve.kept.tolist(), strict=True)}
    write_json(paths["summary"], summary(shown, seconds) | {"kept": kept})
    save_png(ratio_curve(shown), paths["curve"])
    return paths
