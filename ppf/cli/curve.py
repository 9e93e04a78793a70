"""The results of a dynamic search: the agent, summary.json, and the report."""

from collections.abc import Mapping
from pathlib import Path

import torch
from omegaconf import DictConfig

from ppf.artefacts import write_json
from ppf.cli.results import common, dense_entry, summary
from ppf.context.prepare import PruningContext
from ppf.report.scores import Entry, LogPerplexity, percent
from ppf.report.search import SearchReport
from ppf.stages.dynamic import Learnt

_DRAWN = 12  # most policies in the heatmap


def entries(context: PruningContext, learnt: Learnt) -> list[Entry]:
    """The dense model, and the agent and uniform pruning at each ratio."""
    curve, rows = learnt.curve, [dense_entry(context, learnt.labels)]
    for i, ratio in enumerate(curve.ratios):
        mean, std = curve.predicted[i].tolist()
        even, found = (float(x[i]) for x in (curve.uniform_measured, curve.measured))
        rows += [
            Entry(
                "uniform", ratio, LogPerplexity(even),
                parameters=_parameters(context, curve.uniform[i]),
            ),
            Entry(
                "PPF", ratio, LogPerplexity(found), LogPerplexity(mean, std),
                parameters=_parameters(context, curve.kept[i]),
            ),
        ]  # fmt: skip
    return rows


def _parameters(context: PruningContext, kept: torch.Tensor) -> int:
    return context.parameters - int(context.space.removed(kept))


def write(
    cfg: DictConfig,
    context: PruningContext,
    learnt: Learnt,
    seconds: Mapping[str, float],
    folder: Path,
) -> SearchReport:
    """Writes the agent and summary.json; returns the report."""
    curve, shown = learnt.curve, entries(context, learnt)
    policies = dict(zip(curve.ratios, curve.kept.tolist(), strict=True))
    paths = {"agent": learnt.agent.save(folder), "summary": folder / "summary.json"}
    kept = {str(ratio): policy for ratio, policy in policies.items()}
    write_json(paths["summary"], summary(shown, seconds) | {"kept": kept})
    every = -(-len(policies) // _DRAWN)
    return SearchReport(
        title=f"{cfg.model.name} at every pruning ratio",
        dynamic=True,
        policies={percent(ratio): kept for ratio, kept in list(policies.items())[::every]},
        entries=shown,
        candidates=[],
        history=learnt.history,
        proposals={},
        pareto=None,
        paths=paths,
        signatures=vars(context.signatures),
        next_commands=_next_commands(folder),
        **common(cfg, context, learnt.labels, learnt.trained.predictor, seconds),
    )


def _next_commands(folder: Path) -> dict[str, str]:
    ask = f"import ppf; print(ppf.load_agent('{folder}').policy(ratio=0.37))"
    return {
        "Serve the model at any ratio": f"python serve.py search={folder}",
        "Ask the agent for a policy": f'python -c "{ask}"',
        "Search longer at one ratio": "python search.py ratio=0.3",
    }
