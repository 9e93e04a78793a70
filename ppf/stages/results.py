"""What a search leaves: policy.json, summary.json, report.html, and rows for the console."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from ppf.artefacts import write_json
from ppf.labels.table import PROPOSED, Labels
from ppf.policy_search.pareto import front
from ppf.policy_search.verify import CANDIDATE
from ppf.predictor.base import Predictor
from ppf.report.html import Pareto, PredictionScatter, SearchReport, write_report
from ppf.report.scores import Entry, LogPerplexity
from ppf.stages.budgets import saved
from ppf.stages.policy import by_site, policy_record
from ppf.stages.prepare import PruningContext
from ppf.stages.search import Found


def entries(context: PruningContext, labels: Labels, found: Found) -> list[Entry]:
    """Dense, uniform and the policy found, as every table shows them."""
    dense = Entry("dense", 0.0, measured=LogPerplexity(float(labels.nll[0])))
    return [
        dense,
        _entry(context, found, 0, "uniform"),
        _entry(context, found, found.measured.best, "PPF"),
    ]


def record(cfg: DictConfig, context: PruningContext, found: Found) -> dict[str, Any]:
    """The contents of policy.json."""
    best, space = found.measured.best, context.space
    scores = _scores(_entry(context, found, best, "PPF"))
    uniform = _scores(_entry(context, found, 0, "uniform"))
    removed = int(space.removed(found.measured.kept[best].cpu()))
    numbers = {
        "ratio": {
            "asked": cfg.ratio,
            "achieved": removed / space.total,
            "of_all_parameters": removed / context.parameters,
        },
        "budget": {
            "name": cfg.budget.name,
            "saved": float(saved(context, cfg.budget, found.measured.kept[best, None].cpu())),
        },
        "predicted": scores["predicted"],
        "measured": scores["measured"] | {"part": "labelling"},
        "uniform": {
            "kept": by_site(space, found.measured.kept[0].tolist()),
            "measured": uniform["measured"] | {"part": "labelling"},
        },
    }
    return policy_record(context, found.kept, numbers, predictor=found.trained.signature)


def write(
    cfg: DictConfig,
    context: PruningContext,
    labels: Labels,
    found: Found,
    seconds: Mapping[str, float],
    folder: Path,
) -> dict[str, Path]:
    """Writes all files of a search, on rank 0, and returns them by what they are.

    All ranks must call this, since they measure budgets together.
    """
    policy, shown = record(cfg, context, found), entries(context, labels, found)
    paths = {
        "policy": folder / "policy.json",
        "summary": folder / "summary.json",
        "metrics": folder / "metrics.csv",
        "report": folder / "report.html",
    }
    report = _report(cfg, context, labels, found, policy, shown, seconds, paths)
    if context.artefacts.ranks.is_global_zero:
        write_json(paths["policy"], policy)
        write_json(paths["summary"], summary(shown, seconds))
        write_report(paths["report"], report)
    return {name: path for name, path in paths.items() if path.is_file()}


def _report(
    cfg: DictConfig,
    context: PruningContext,
    labels: Labels,
    found: Found,
    policy: Mapping[str, Any],
    shown: Sequence[Entry],
    seconds: Mapping[str, float],
    paths: Mapping[str, Path],
) -> SearchReport:
    order = found.measured.measured.nan_to_num(torch.inf).argsort().tolist()
    return SearchReport(
        title=f"{policy['model']} at pruning ratio {cfg.ratio}",
        command=" ".join(["python", "search.py", *sys.argv[1:]]),
        model=policy["model"],
        order=_name(context.config.importance),
        compensation=_name(context.config.compensation),
        text=context.text.name,
        predictor=_predictor(cfg.predictor),
        agent=_name(cfg.agent),
        ratio_asked=cfg.ratio,
        ratio_achieved=policy["ratio"]["achieved"],
        share_of_all=policy["ratio"]["of_all_parameters"],
        space=context.space,
        kept=found.kept,
        history=found.history,
        held_out=_held_out(found.trained.predictor),
        summary=shown,
        candidates=[_entry(context, found, i, _candidate(found, i)) for i in order],
        curve=shown,
        pareto=_pareto(context, cfg.pareto, labels, found),
        seconds=seconds,
        paths=paths,
        signatures=policy["signatures"],
    )


def _held_out(predictor: Predictor) -> PredictionScatter | None:
    """Held-out policies and the scores over all ratios; None if the predictor has none."""
    if predictor.held_out is None:
        return None
    metrics = predictor.metrics.items()
    quality = {name.removeprefix("test/"): v for name, v in metrics if name.count("_") == 0}
    columns = {name: values.tolist() for name, values in predictor.held_out._asdict().items()}
    return PredictionScatter(**columns, quality=quality)


def _predictor(config: DictConfig) -> str:
    """The predictor's name: its network's, if it has one."""
    process = " with Gaussian process" if config.get("residual") else ""
    return _name(config.get("network", config)) + process


def _pareto(context: PruningContext, costs: DictConfig, labels: Labels, found: Found) -> Pareto:
    """All policies that were labelled or measured, by two costs."""
    budgets = (costs.x, costs.y)
    every = labels.with_rows(found.measured.kept.cpu(), found.measured.measured.cpu(), PROPOSED)
    share = torch.stack([saved(context, budget, every.kept) for budget in budgets], 1)
    nll = every.nll.double().nan_to_num(torch.inf)
    chosen = front(torch.cat([nll[:, None], -share], 1)) & nll.isfinite()
    pairs = [(first, second) for first, second in share.tolist()]
    names = (str(budgets[0].name), str(budgets[1].name))
    return Pareto(names, pairs, nll.tolist(), chosen.tolist())


def _entry(context: PruningContext, found: Found, row: int, name: str) -> Entry:
    measured = found.measured
    return Entry(
        name,
        float(context.space.ratio(measured.kept[row].cpu())),
        measured=LogPerplexity(float(measured.measured[row])),
        predicted=LogPerplexity(float(measured.mean[row]), float(measured.std[row])),
    )


def _candidate(found: Found, row: int) -> str:
    name = found.measured.names[row]
    return f"{name} {row}" if name == CANDIDATE else name


def _scores(entry: Entry) -> dict[str, dict[str, Any]]:
    return {score.known: score.record() for score in entry.scores}


def summary(shown: Sequence[Entry], seconds: Mapping[str, float]) -> dict[str, Any]:
    """The contents of summary.json: what is known of each policy, and what it took."""
    rows = [{"policy": entry.policy, "ratio": entry.ratio} | _scores(entry) for entry in shown]
    return {"results": rows, "part": "labelling", "seconds": dict(seconds)}


def _name(config: Any) -> str:
    """The last word of a config's target: the class that it makes."""
    return str(config._target_).rpartition(".")[2]
