"""The results of a search as plain values: the contents of policy.json and of summary.json.

summary.json holds everything that the report shows (see `ppf.report.search`).
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_class
from omegaconf import DictConfig

from ppf.commands import python_command
from ppf.evaluation import LogPerplexity
from ppf.labels.context import PruningContext
from ppf.labels.table import Labels
from ppf.overrides import quoted
from ppf.policy_file import described, policy_record
from ppf.policy_search import AgentResult, PolicyResult
from ppf.policy_search.verify import CANDIDATE
from ppf.predictor.base import Predictor
from ppf.predictor.scores import HeldOut, with_intervals
from ppf.report.numbers import percent
from ppf.stages.about import about, carried_text, next_command
from ppf.stages.budgets import saved

SummaryRow = dict[str, Any]
"""One policy in summary.json: its name, ratio, scores and size."""
Seconds = Mapping[str, float]
"""Duration of each part of a search."""
_NAMED = ("dense", "uniform", "PPF")
_SCORES = ("policies", "equal_ratio", "equal_ratio_low", "equal_ratio_high", "coverage")


def policy_contents(
    cfg: DictConfig, context: PruningContext, found: PolicyResult
) -> dict[str, Any]:
    """The contents of policy.json. All ranks must call this, since they measure costs together."""
    kept = found.measured.kept[[found.best, 0]].cpu()
    shares = saved(context, cfg.budget, kept).tolist()
    best = _measured(context, found, found.best, shares[0], "PPF")
    numbers = {
        "ratio": {
            "asked": cfg.ratio,
            "achieved": float(context.model.space.ratio(kept[0])),
            "of_all_parameters": 1 - best["parameters"] / context.model.parameters,
        },
        "budget": {"name": cfg.budget.name, "saved": shares[0]},
        "predicted": best["predicted"],
        **_by_part(best),
        "uniform": {
            **described(context, kept[1].tolist()),
            **_by_part(_measured(context, found, 0, shares[1], "uniform")),
        },
    }
    return policy_record(context, found.kept, numbers, predictor=found.trained.signature)


def static_summary(
    cfg: DictConfig, context: PruningContext, labels: Labels, found: PolicyResult, seconds: Seconds
) -> dict[str, Any]:
    """The contents of summary.json after a search at one ratio.

    All ranks must call this, since they measure costs together.

    Args:
        labels: policies that were measured before the search, the dense one first.
    """
    measured = found.measured
    shares = saved(context, cfg.budget, measured.kept.cpu())
    names = [[name for name in known if name != CANDIDATE] for known in measured.names]

    def row(place: int, *own: str) -> SummaryRow:
        return _measured(context, found, place, float(shares[place]), *own)

    asked = "with {} fewer bytes" if context.model.space.budget == "bytes" else "at ratio {}"
    own = {found.best: ["PPF"]}
    return {
        "title": f"{cfg.model.name} {asked.format(percent(cfg.ratio))}",
        "results": [
            _dense(context, labels),
            *(row(place, *known) for place, known in enumerate(names) if known),
            row(found.best, "PPF"),
        ],
        "candidates": [
            row(place, *names[place] or own.get(place, [f"{CANDIDATE} {place}"]))
            for place in measured.measured.nan_to_num(torch.inf).argsort().tolist()
        ],
        "proposals": _proposals(labels, found, shares.tolist()),
        "promised": found.promised,
        "next_commands": _after_policy(cfg, rounded="types" in described(context, found.kept)),
        **_run(cfg, context, seconds, found),
    }


def agent_summary(
    cfg: DictConfig, context: PruningContext, found: AgentResult, seconds: Seconds
) -> dict[str, Any]:
    """The contents of summary.json after a search for all ratios."""
    labels = found.labels
    ratios = found.agent.space.saved(labels.kept).double()  # of all measured policies
    return {
        "title": f"{cfg.model.name} at every pruning ratio",
        "results": [_dense(context, labels), *_curve(context, found)],
        "candidates": [],
        "proposals": {},
        "labels": torch.stack([ratios, labels.nll.double()], 1).tolist(),
        "next_commands": _after_agent(cfg),
        **_run(cfg, context, seconds, found),
    }


def rows_of_run(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a search in the table of a multirun: one for each ratio of PPF."""
    kinds = {"test": "test", "measured": "labelling"} | {k: k for k in ("selection", "predicted")}
    scores, static = summary["proposals"], summary["mode"] == "static"
    same = {key: summary[key] for key in ("method", "evaluations", "token_passes")}
    same["seed"] = summary["settings"]["seed"]
    same |= {f"proposals_{name}": scores[name] for name in _SCORES if name in scores}
    named = {name: r for r in summary["results"] for name in (r["policy"], *r.get("also", []))}
    rules = named.keys() - _NAMED if static else set()
    published = rules & set(summary.get("published_rules", []))
    for kind, names in {"best_rule": rules, "best_published_rule": published}.items():
        known = [named[name].get("measured", {}).get("perplexity") for name in names]
        if losses := [loss for loss in known if loss is not None]:
            same[f"{kind}_labelling_ppl"] = min(losses)
    rows, uniform = list[dict[str, Any]](), dict[str, Any]()
    for row in summary["results"]:
        found = {f"{kinds[k]}_ppl": row[k]["perplexity"] for k in kinds if k in row}
        if row["policy"] == "uniform":
            uniform = {f"uniform_{name}": value for name, value in list(found.items())[:1]}
        elif row["policy"] == "PPF":
            # A sweep compares jobs by the requested ratio.
            found |= {"ratio": summary["asked"][0] if static else row["ratio"]}
            if delivered := summary.get("delivered"):
                found["sequential_ppl"] = delivered["sequential"]["perplexity"]
                if "test" in delivered:
                    found["delivered_test_ppl"] = delivered["test"]["perplexity"]
            found["predicted_std"] = row["predicted"]["std"]  # nats per token
            if "bytes" in row:
                found["matrices_mib"] = row["bytes"] / 2**20
            rows.append(found | uniform | same)
    return rows


def _measured(
    context: PruningContext, found: PolicyResult, place: int, share: float, *own: str
) -> SummaryRow:
    """A policy that a search has measured.

    Args:
        place: its row in the search's `Verification`.
        share: of the budget that it saves.
        own: its names.
    """
    measured, parts = found.measured, found.selection
    nll, *predicted = (float(x[place]) for x in (measured.measured, measured.mean, measured.std))
    scores = {"measured": LogPerplexity(nll), "predicted": LogPerplexity(*predicted)}
    row = _row(context, share, measured.kept[place].tolist(), *own)
    if parts and place in parts.rows:
        mean = parts.selection(place)
        scores["measured"] = LogPerplexity(nll, std_error=parts.labelling(place).std_error)
        scores["selection"] = LogPerplexity(mean.nll, std_error=mean.std_error)
        if place:
            mean = parts.against_uniform(place)
            row["against_uniform"] = {"nats": mean.nll, "std_error": mean.std_error}
    return row | {name: score.record() for name, score in scores.items()}


def _row(context: PruningContext, share: float, kept: Sequence[int], *own: str) -> SummaryRow:
    """A policy without its scores. That of PPF and the baselines also say what each site keeps."""
    model, (name, *also) = context.model, own
    space, (units, _) = model.space, model.decode(kept)
    row: SummaryRow = {"policy": name, "ratio": share, "parameters": model.pruner.parameters(units)}
    if also:
        row["also"] = also
    if space.budget == "bytes":
        row["bytes"] = space.total - int(space.removed(torch.tensor(kept)))
    if name in _NAMED:
        row["share"] = {
            site.name: round(params[k] / params[-1], 4)
            for site, params, k in zip(space.sites, space.kept_params.tolist(), kept, strict=True)
        }
        row |= described(context, list(kept))
    return row


def _dense(context: PruningContext, labels: Labels) -> SummaryRow:
    measured = LogPerplexity(float(labels.nll[0])).record()
    row = _row(context, 0.0, context.model.space.dense.tolist(), "dense")
    return row | {"measured": measured}


def _by_part(row: SummaryRow) -> dict[str, Any]:
    """Scores on the labelling and on the selection part, in the form of policy.json."""
    parts = {"measured": "labelling", "selection": "selection"}
    return {key: row[key] | {"part": part} for key, part in parts.items() if key in row}


def _curve(context: PruningContext, result: AgentResult) -> Iterator[SummaryRow]:
    """At each ratio uniform pruning, the allocation rules and the agent.

    The last predictor predicts the rules; they are left out if it is not valid at all ratios. Their
    measured values appear only where a label exists, because measuring all of them at all ratios
    would cost more than the search. A prediction of `predictor=oracle` counts as a measurement.
    """
    curve, labels = result.curve, result.labels
    known = dict(zip(map(tuple, labels.kept.tolist()), labels.nll.tolist(), strict=True))
    for place, ratio in enumerate(curve.ratios):
        found: dict[str, tuple[list[int], list[float]]]
        found = {"uniform": (curve.uniform[place].tolist(), [])}
        if result.objective:
            objective = result.objective.at(ratio)
            baselines = objective.baselines()
            scores = torch.stack(objective.predictor.predict(baselines), 1).tolist()
            pairs = zip(baselines.tolist(), scores, strict=True)
            # The rules may contain uniform pruning again.
            found = dict(zip(["uniform", *objective.rules], pairs, strict=True))
        found["PPF"] = curve.kept[place].tolist(), curve.predicted[place].tolist()
        for name, (kept, predicted) in found.items():
            row = _row(context, ratio, kept, name)
            if (nll := known.get(tuple(kept))) is not None:
                row["measured"] = LogPerplexity(nll).record()
            if predicted:
                row["predicted"] = LogPerplexity(*predicted).record()
            yield row


def _run(
    cfg: DictConfig, context: PruningContext, seconds: Seconds, found: PolicyResult | AgentResult
) -> dict[str, Any]:
    """What was searched with which settings, its cost, the agent's training, and the predictor."""
    model, labelling, fitted = context.model, context.labelling, found.trained.predictor
    (windows, window), others = labelling.windows.shape, len(labelling.others)
    agent = _name(cfg, "agent")
    asked = [cfg.ratio] if cfg.mode == "static" else list(cfg.ratios)
    selection = 0 if cfg.mode == "dynamic" else min(cfg.search.selection_windows, others)
    return {
        **about("search"),
        "mode": cfg.mode,
        "method": agent if "allocation" in cfg.agent else f"PPF ({agent})",  # a rule is not PPF
        "model": cfg.model.name,
        "part": "labelling",
        "asked": asked,
        "settings": {
            "model": f"{cfg.model.name}, {str(model.lm.dtype).removeprefix('torch.')}",
            "space": f"{model.space.name}, {len(model.space)} sites",
            "importance": _name(cfg, "importance"),
            "compensation": _name(cfg, "compensation"),
            "text": context.text.name,
            "labelling part": f"{windows} windows of {window} tokens",
            "selection part": f"{selection} other windows of the same documents",
            "predictor": _name(cfg, "predictor"),
            "agent": agent,
            "requested ratio": f"{', '.join(map(percent, asked))} of {cfg.budget.name}",
            "seed": cfg.seed,
        },
        "units": model.pruner.space.units_by_name,
        "published_rules": [
            name
            for name, rule in cfg.rules.items()
            if getattr(get_class(rule._target_), "published", False)
        ],
        "seconds": seconds,
        "evaluations": len(labelling.used),
        "token_passes": labelling.token_passes,
        "signatures": vars(context.signatures),
        "history": found.history,
        "predictor": _held_out(fitted),
    }


def _name(cfg: DictConfig, group: str) -> str:
    """The chosen option of a config group; the name of its class if Python code made the config."""
    chosen = HydraConfig.get().runtime.choices.get(group) if HydraConfig.initialized() else None
    return str(chosen or cfg[group]._target_.rpartition(".")[2])


def _held_out(predictor: Predictor) -> dict[str, Any] | None:
    """Predictions of policies that it was not fitted to, and their scores; None: it has none."""
    if (rows := getattr(predictor, "held_out", None)) is None:
        return None
    columns = ("predicted", "std", "measured", "ratio")
    metrics = getattr(predictor, "metrics", {})
    scores = {name.removeprefix("test/"): score for name, score in metrics.items()}
    return {name: getattr(rows, name).tolist() for name in columns} | {"scores": scores}


def _proposals(labels: Labels, found: PolicyResult, shares: Sequence[float]) -> dict[str, float]:
    """Scores of the predictions of all proposals, by name.

    Kendall's correlation compares proposals of one round: other rounds have another predictor, and
    a search only compares predictions of one.

    Empty: there are too few, or `predictor=oracle` has measured instead of predicting.
    """
    measured = found.measured
    known = (measured.proposed & measured.measured.isfinite().cpu()).nonzero()[:, 0]
    mean, std, nll = (x.cpu()[known] for x in (measured.mean, measured.std, measured.measured))
    if torch.equal(mean.float(), nll.float()):
        return {}
    rows = HeldOut(mean, std, nll, torch.tensor(shares)[known], found.rounds[known])
    return with_intervals(rows, float(labels.nll[0]), (), grouped=True)


def _after_policy(cfg: DictConfig, *, rounded: bool) -> dict[str, str]:
    """Next commands, by their purpose; `rounded`: the policy also quantises weights."""
    given = f"policy={quoted(f'{cfg.paths.run}/policy.json')}"
    found = {"Measure the policy on the test part": next_command("evaluate", given)}
    if rounded:
        words = (given, "out=gguf", "export=gguf", "export.type=q8_0")
        return found | {"Write a file for llama.cpp": next_command("prune", *words)}
    return found | {
        "Write the smaller model": next_command("prune", given, "out=pruned"),
        "Train the smaller model, with the dense model as its teacher": (
            next_command("recover", given, "out=recovered", *carried_text())
        ),
        "Try it in a browser": next_command("serve", f"search={quoted(cfg.paths.run)}"),
    }


def _after_agent(cfg: DictConfig) -> dict[str, str]:
    """Next commands, by their purpose."""
    folder, middle = str(cfg.paths.run), cfg.ratios[len(cfg.ratios) // 2]
    given, trusted = f"search={quoted(folder)}", list(cfg.trust_targets)
    loaded = ", ".join(map(repr, [folder, trusted] if trusted else [folder]))
    # The default of recover.py is up to 0.5.
    ratios = [] if max(cfg.search.range) >= 0.5 else [f"ratios={list(cfg.ratios)}"]
    return {
        "Serve the model at any ratio": next_command("serve", given),
        "Train adapters for all ratios, with the dense model as their teacher": (
            next_command("recover", given, "out=recovered", *ratios, *carried_text())
        ),
        "Ask the agent for a policy": python_command(
            f"import ppf; print(ppf.load_agent({loaded}).policy(ratio={middle}))"
        ),
    }
