"""The results of a search: policy.json, summary.json, and the report."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from jaxtyping import Float, Int
from omegaconf import DictConfig
from torch import Tensor

from ppf.artefacts import write_json
from ppf.context import PruningContext
from ppf.labels.table import PROPOSED, Labels
from ppf.overrides import quoted
from ppf.planning.evaluations import counts_bytes
from ppf.policy_file import described, model_name, policy_record
from ppf.predictor.base import Predictor
from ppf.predictor.scores import HeldOut, with_intervals
from ppf.pruning.prunable import PrunableModel
from ppf.report.origin import carried_text, command_line, gguf_command, machine, next_command
from ppf.report.scores import Entry, LogPerplexity, percent
from ppf.report.search import Accuracy, Pareto, SearchReport
from ppf.search.pareto import front
from ppf.search.selection import Mean
from ppf.search.verify import CANDIDATE
from ppf.stages.budgets import saved
from ppf.stages.score import out_of_fold
from ppf.stages.search import Found


def entries(
    model: PrunableModel, labels: Labels, found: Found, shares: Float[Tensor, " n"]
) -> list[Entry]:
    """Dense, uniform, the allocation rules and the policy found, as every table shows them.

    Args:
        shares: of the budget that each measured policy saves.
    """
    baselines = [_baselines(found, row) for row in range(len(found.measured.names))]
    return [
        dense_entry(model, labels),
        *(
            _entry(model, found, shares, row, *names)
            for row, names in enumerate(baselines)
            if names
        ),
        _entry(model, found, shares, found.best, "PPF"),
    ]


def dense_entry(model: PrunableModel, labels: Labels) -> Entry:
    """The dense model."""
    measured = LogPerplexity(float(labels.nll[0]))
    return Entry(
        "dense", 0.0, measured, parameters=model.parameters,
        bytes=_bytes(model, model.space.dense),
    )  # fmt: skip


def record(
    cfg: DictConfig, context: PruningContext, found: Found, shares: Float[Tensor, " n"]
) -> dict[str, Any]:
    """The contents of policy.json; arguments as for `entries`."""
    best, space = found.best, context.model.space
    predicted = LogPerplexity(*(float(x[best]) for x in (found.measured.mean, found.measured.std)))
    kept = found.measured.kept[best].cpu()
    numbers = {
        "ratio": {
            "asked": cfg.ratio,
            "achieved": float(space.ratio(kept)),
            "of_all_parameters": 1 - _parameters(context.model, kept) / context.model.parameters,
        },
        "budget": {
            "name": cfg.budget.name,
            "saved": float(shares[best]),
        },
        "predicted": predicted.record(),
        **_by_part(_entry(context.model, found, shares, best, "PPF")),
        "uniform": {
            **described(context, found.measured.kept[0].tolist()),
            **_by_part(_entry(context.model, found, shares, 0, "uniform")),
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
) -> SearchReport:
    """Writes policy.json and summary.json on rank 0; returns the report.

    All ranks must call this, since they measure budgets together.
    """
    shares = saved(context, cfg.budget, found.measured.kept.cpu())
    policy = record(cfg, context, found, shares)
    shown = entries(context.model, labels, found, shares)
    paths = {"policy": folder / "policy.json", "summary": folder / "summary.json"}
    policies = {"PPF": found.kept, "uniform": found.measured.kept[0].tolist()}
    measured = _with_measured(labels, found)
    ratios = saved(context, cfg.budget, measured.kept)
    report = SearchReport(
        title=f"{policy['model']} {_asked(cfg)}",
        dynamic=False,
        policies=policies,
        words=_words(context.model, policies),
        entries=shown,
        candidates=[
            _entry(
                context.model,
                found,
                shares,
                row,
                *_baselines(found, row) or [_candidate(found, row)],
            )
            for row in found.measured.measured.nan_to_num(torch.inf).argsort().tolist()
        ],
        history=found.history,
        proposals=_proposals(labels, found, shares),
        pareto=_pareto(context, cfg.pareto, measured),
        paths=paths,
        signatures=policy["signatures"],
        next_commands=_next_commands(cfg, paths["policy"], rounded="types" in policy),
        **common(cfg, context, measured, ratios, found.trained.predictor, seconds),
    )
    if context.artefacts.ranks.is_global_zero:
        write_json(paths["policy"], policy)
        more = {"proposals": report.proposals} if report.proposals else {}
        write_json(paths["summary"], summary(shown, seconds) | more)
    return report


def common(
    cfg: DictConfig,
    context: PruningContext,
    labels: Labels,
    ratios: Float[Tensor, " labels"],
    predictor: Predictor,
    seconds: Mapping[str, float],
) -> dict[str, Any]:
    """The parts of a report that static and dynamic searches share.

    Args:
        labels: all policies measured on the real model, those of the search included.
        ratios: at which the report draws them.
        predictor: of the last round.
        seconds: duration of each stage.
    """
    space = context.model.space
    return {
        "command": command_line("search"),
        "measured_on": _measured_on(
            context, cfg.search.selection_windows if cfg.mode != "dynamic" else 0
        ),
        "agent": _name(cfg, "agent"),
        "settings": _settings(cfg, context),
        "space": space,
        "labels": list(zip(ratios.tolist(), labels.nll.tolist(), strict=True)),
        "accuracy": _accuracy(predictor, cfg.predictor),
        "seconds": seconds,
        "evaluations": len(context.labelling.used),
        "machine": machine(),
    }


def _measured_on(context: PruningContext, wanted: int) -> str:
    windows, window = context.labelling.windows.shape
    new = min(wanted, len(context.labelling.others))
    skipped = context.labelling.settings.context
    without = f", without the first {skipped} tokens of each window" if skipped > 1 else ""
    selection = (
        f" The selection part is {new} other windows of the same documents, which only the final"
        " choice among the best policies of a ratio used." if new else ""
    )  # fmt: skip
    return (
        f"Measured on {windows} windows of {window} tokens of the labelling part of"
        f" {context.text.name}{without}.{selection}"
    )


def _settings(cfg: DictConfig, context: PruningContext) -> dict[str, str]:
    asked = percent(cfg.ratio) if cfg.mode == "static" else ", ".join(map(percent, cfg.ratios))
    return {
        "Model": f"{model_name(cfg.model)}, {str(context.model.lm.dtype).removeprefix('torch.')}",
        "Space": f"{context.model.space.name}, {len(context.model.space)} sites",
        "Importance": _name(cfg, "importance"),
        "Compensation": _name(cfg, "compensation"),
        "Text": context.text.name,
        "Predictor": _name(cfg, "predictor"),
        "Agent": _name(cfg, "agent"),
        "Requested ratio": f"{asked} of {cfg.budget.name}",
        "Seed": str(cfg.seed),
    }


def _asked(cfg: DictConfig) -> str:
    ratio = percent(cfg.ratio)
    return f"with {ratio} fewer bytes" if counts_bytes(cfg.budget) else f"at ratio {ratio}"


def _words(model: PrunableModel, policies: Mapping[str, Sequence[int]]) -> dict[str, Sequence[str]]:
    """What each site keeps, in words, if the policies also quantise weights."""
    found: dict[str, Sequence[str]] = {}
    for name, kept in policies.items():
        units, types = model.decode(kept)
        if types:
            parts = zip(units, model.pruner.space.sites, types, strict=True)
            found[name] = [f"{k} of {site.units}, {type}" for k, site, type in parts]
    return found


def _next_commands(cfg: DictConfig, policy: Path, *, rounded: bool) -> dict[str, str]:
    given = f"policy={quoted(policy)}"
    evaluate = {"Measure the policy on the test part": next_command("evaluate", given)}
    if rounded:
        return evaluate | gguf_command(given)
    return evaluate | {
        "Write the smaller model": next_command("prune", given, "out=pruned"),
        "Train the smaller model, with the dense model as its teacher": (
            next_command("recover", given, "out=recovered", *carried_text(cfg.text))
        ),
        "Try it in a browser": next_command("serve", f"search={quoted(policy.parent)}"),
    }


def _accuracy(predictor: Predictor, config: DictConfig) -> Accuracy | None:
    """The predictor on held-out policies; None if it has none."""
    found = out_of_fold(predictor)
    if found is None:
        return None
    predicted, std, measured, ratio = (column.tolist() for column in found.held_out[:4])
    metrics = {name.removeprefix("test/"): score for name, score in found.metrics.items()}
    bands = list(config.get("bands", []))
    return Accuracy(predicted, std, measured, ratio, metrics, bands)


def _proposals(labels: Labels, found: Found, shares: Float[Tensor, " n"]) -> dict[str, float]:
    """Scores of the predictions of all proposals, by name.

    Empty: there are too few, or `predictor=oracle` has measured instead of predicting.
    """
    measured = found.measured
    known = (measured.proposed & measured.measured.isfinite().cpu()).nonzero()[:, 0]
    mean, std, nll = (x.cpu()[known] for x in (measured.mean, measured.std, measured.measured))
    if torch.equal(mean.float(), nll.float()):
        return {}
    rows = HeldOut(mean, std, nll, shares[known], torch.arange(len(known)))
    return with_intervals(rows, [], float(labels.nll[0]))


def _pareto(context: PruningContext, costs: DictConfig, every: Labels) -> Pareto:
    """All policies that were labelled or measured, by two costs."""
    budgets = (costs.x, costs.y)
    share = torch.stack([saved(context, budget, every.kept) for budget in budgets], 1)
    nll = every.nll.double().nan_to_num(torch.inf, torch.inf)
    chosen = front(torch.cat([nll[:, None], -share], 1)) & nll.isfinite()
    pairs = [(first, second) for first, second in share.tolist()]
    names = (str(budgets[0].name), str(budgets[1].name))
    return Pareto(names, pairs, nll.tolist(), chosen.tolist())


def _with_measured(labels: Labels, found: Found) -> Labels:
    """The labels and what the search measured."""
    return labels.with_rows(found.measured.kept.cpu(), found.measured.measured.cpu(), PROPOSED)


def _entry(
    model: PrunableModel,
    found: Found,
    shares: Float[Tensor, " n"],
    row: int,
    name: str,
    *also: str,
) -> Entry:
    measured, kept = found.measured, found.measured.kept[row].cpu()
    entry = Entry(
        name,
        float(shares[row]),
        measured=LogPerplexity(float(measured.measured[row])),
        predicted=LogPerplexity(float(measured.mean[row]), float(measured.std[row])),
        parameters=_parameters(model, kept),
        also=also,
        bytes=_bytes(model, kept),
    )
    parts = found.selection
    if parts is None or row not in parts.rows:
        return entry
    assert entry.measured
    return replace(
        entry,
        measured=replace(entry.measured, std_error=_known(parts.labelling(row).std_error)),
        selection=_measured(parts.selection(row)),
        difference=_measured(parts.against_uniform(row)) if row else None,
    )


def _measured(mean: Mean) -> LogPerplexity:
    return LogPerplexity(mean.nll, std_error=_known(mean.std_error))


def _known(std_error: float) -> float | None:
    """None for NaN, the standard error of one window."""
    return std_error if math.isfinite(std_error) else None


def _parameters(model: PrunableModel, kept: Int[Tensor, " sites"]) -> int:
    """Parameters of the model under a policy."""
    return model.pruner.parameters(model.units(kept[None])[0].tolist())


def _baselines(found: Found, row: int) -> list[str]:
    """Uniform pruning and the allocation rules, as far as they propose a policy."""
    return [name for name in found.measured.names[row] if name != CANDIDATE]


def _candidate(found: Found, row: int) -> str:
    return "PPF" if row == found.best else f"{CANDIDATE} {row}"


def _bytes(model: PrunableModel, kept: Int[Tensor, " sites"]) -> int | None:
    """Size of the prunable matrices under a policy; None: the budget does not count bytes."""
    space = model.space
    return space.total - int(space.removed(kept)) if space.budget == "bytes" else None


def _by_part(entry: Entry) -> dict[str, dict[str, Any]]:
    """Measurements on the labelling and on the selection part, in the form of policy.json."""
    parts = {"measured": "labelling", "selection": "selection"}
    known = {key: score for key in parts if (score := getattr(entry, key))}
    return {key: score.record() | {"part": parts[key]} for key, score in known.items()}


def summary(shown: Sequence[Entry], seconds: Mapping[str, float]) -> dict[str, Any]:
    """The contents of summary.json: the scores of each policy, and the duration of each stage."""
    return {
        "results": [entry.record() for entry in shown],
        "part": "labelling",
        "seconds": dict(seconds),
    }


def _name(cfg: DictConfig, group: str) -> str:
    """The chosen option of a config group; the name of its class if Python code made the config."""
    chosen = HydraConfig.get().runtime.choices.get(group) if HydraConfig.initialized() else None
    return str(chosen or cfg[group]._target_.rpartition(".")[2])
