"""The results of a search for all ratios: the agent, summary.json, and the report."""

from collections.abc import Mapping
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from ppf.artefacts import write_json
from ppf.cli.results import common, dense_entry, summary
from ppf.commands import python_command
from ppf.context import PruningContext
from ppf.overrides import quoted
from ppf.policy_file import model_name
from ppf.report.origin import carried_text, command_with, next_command
from ppf.report.scores import Entry, LogPerplexity, percent
from ppf.report.search import SearchReport
from ppf.stages.dynamic import FoundAgent
from ppf.stages.search_inputs import SearchInputs

_DRAWN = 6  # most ratios in the heatmap


def entries(context: PruningContext, result: FoundAgent, inputs: SearchInputs) -> list[Entry]:
    """The dense model, and at each ratio uniform pruning, the allocation rules and the agent.

    The last predictor predicts the rules; they are left out if it is not valid at all ratios. Their
    measured values appear only where a label exists, because measuring all of them at all ratios
    would cost more than the search. A prediction of `predictor=oracle` counts as a measurement.
    """
    curve, labels, course = result.curve, result.labels, result.course
    known = dict(zip(map(tuple, labels.kept.tolist()), labels.nll.tolist(), strict=True))
    rows = [dense_entry(context.model, labels)]
    for i, ratio in enumerate(curve.ratios):
        found: dict[str, tuple[Tensor, list[float] | None]] = {"uniform": (curve.uniform[i], None)}
        if course.everywhere:
            region = inputs.settings.trust_region
            objective = inputs.objective(course.trained, region, ratio, ratio)
            baselines = objective.baselines()
            predicted = torch.stack(objective.predictor.predict(baselines), 1).tolist()
            pairs = zip(baselines.cpu(), predicted, strict=True)
            # The rules may contain uniform pruning again.
            found = dict(zip(["uniform", *inputs.rules], pairs, strict=True))
        found["PPF"] = curve.kept[i], curve.predicted[i].tolist()
        for name, (kept, score) in found.items():
            nll = known.get(tuple(kept.tolist()))
            rows.append(
                Entry(
                    name,
                    ratio,
                    measured=None if nll is None else LogPerplexity(nll),
                    predicted=LogPerplexity(*score) if score else None,
                    parameters=context.model.pruner.parameters(kept.tolist()),
                )
            )
    return rows


def write(
    cfg: DictConfig,
    context: PruningContext,
    result: FoundAgent,
    inputs: SearchInputs,
    seconds: Mapping[str, float],
    folder: Path,
) -> SearchReport:
    """Writes the agent and summary.json; returns the report.

    Args:
        inputs: of the search; their rules are predicted.
    """
    curve, shown, labels = result.curve, entries(context, result, inputs), result.labels
    shares = inputs.space.saved(labels.kept)  # entries, too, have the ratio of the budget
    policies = dict(zip(curve.ratios, curve.kept.tolist(), strict=True))
    even = dict(zip(curve.ratios, curve.uniform.tolist(), strict=True))
    paths = {"agent": result.agent.save(folder), "summary": folder / "summary.json"}
    kept = {str(ratio): policy for ratio, policy in policies.items()}
    write_json(paths["summary"], summary(shown, seconds) | {"kept": kept})
    every = -(-len(policies) // _DRAWN)
    return SearchReport(
        title=f"{model_name(cfg.model)} at every pruning ratio",
        dynamic=True,
        policies={
            f"{percent(ratio)}{name}": found[ratio]
            for ratio in curve.ratios[::every]
            for name, found in (("", policies), (", uniform", even))
        },
        entries=shown,
        candidates=[],
        history=result.course.history,
        proposals={},
        pareto=None,
        paths=paths,
        signatures=vars(context.signatures),
        next_commands=_next_commands(cfg, folder),
        **common(cfg, context, labels, shares, result.course.trained.predictor, seconds),
    )


def _ratios(cfg: DictConfig) -> list[str]:
    """The override `ratios=` for recover.py, whose default is up to 0.5."""
    return [] if max(cfg.dynamic.train) >= 0.5 else [f"ratios={list(cfg.ratios)}"]


def _next_commands(cfg: DictConfig, folder: Path) -> dict[str, str]:
    given, middle = f"search={quoted(folder)}", cfg.ratios[len(cfg.ratios) // 2]
    arguments: list[object] = [str(folder)]
    if cfg.trust_targets:
        arguments.append(list(cfg.trust_targets))
    loaded = f"ppf.load_agent({', '.join(map(repr, arguments))})"
    ask = f"import ppf; print({loaded}.policy(ratio={middle}))"
    own: tuple[str, ...] = ()  # what mode=static has others of by default
    if cfg.mode == "dynamic":
        own = ("search", "agent", "predictor", "labels", "polish@agent")
    changed = dict.fromkeys(("ratios", "dynamic", "polish@dynamic.polish", *own))
    return {
        "Serve the model at any ratio": next_command("serve", given),
        "Train adapters for all ratios, with the dense model as their teacher": next_command(
            "recover", given, "out=recovered", *_ratios(cfg), *carried_text(cfg.text)
        ),
        "Ask the agent for a policy": python_command(ask),
        "Search longer at one ratio": command_with(
            "search", changed | {"mode": "static", "ratio": str(middle)}
        ),
    }
