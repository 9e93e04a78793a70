"""ppf-search: finds the policy of lowest perplexity at a ratio, or an agent for every ratio."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.utils import instantiate
from jaxtyping import Int
from lightning import Fabric
from omegaconf import DictConfig
from torch import Tensor

from ppf.agents.gradient import Gradient, differentiable
from ppf.artefacts import write_json
from ppf.cli.app import command
from ppf.cli.checks import changed, lies_in, refuse_unread
from ppf.context import PruningContext, prepare
from ppf.errors import PPFError
from ppf.labels.table import Labels
from ppf.llm import LanguageModel
from ppf.planning.evaluations import drawn_labels
from ppf.policy_file import provenance, read_policy
from ppf.predictor.base import unfitted
from ppf.progress import Stopwatch, say
from ppf.records.run import Outcome
from ppf.report.search import publish_search, rows_of_run
from ppf.space import Space
from ppf.stages.budgets import check_budget, check_cost, priced
from ppf.stages.byte_budget import check_bytes, in_bytes
from ppf.stages.chain import chain
from ppf.stages.collect import collect
from ppf.stages.dynamic import FoundAgent, check_dynamic, check_ratios, dynamic
from ppf.stages.fit import Trained, fitted
from ppf.stages.results import agent_summary, policy_contents, static_summary
from ppf.stages.search import Found, search
from ppf.stages.search_inputs import SearchInputs
from ppf.stages.selection import with_selection
from ppf.stages.tested import add_test
from ppf.text import Text

_OF_ONE_RATIO = ("ratio", "search.start", "pareto", "budget@pareto.x", "budget@pareto.y")
_OF_RUNS = tuple(
    f"{polish}.{key}" for polish in ("agent.polish", "dynamic.polish") for key in ("polish",)
)
UNREAD = {
    "static": ("ratios", "dynamic", "polish@dynamic.polish"),
    "chain": (
        *_OF_ONE_RATIO,
        "dynamic.stride",
        "dynamic.tolerance",
        "dynamic.polish",
        "polish@dynamic.polish",
    ),
    "dynamic": (
        *_OF_ONE_RATIO,
        "agent.polish",
        "polish@agent.polish",
        "search.agreement",
        "search.proposals_only",
        "search.finalists",
        "search.gain",
        "search.label_budget",
        "search.neighbours",
        "search.selection_windows",
        "search.top_k",
    ),
}
"""Keys and sections that a mode does not read."""


def _check(cfg: DictConfig, overrides: Sequence[str]) -> None:
    check_read(cfg, overrides)
    check_bytes(cfg)
    if isinstance(instantiate(cfg.agent), Gradient):
        differentiable(unfitted(cfg.predictor))
    if cfg.search.start:
        if read_policy(cfg.search.start, cfg.trust_targets).get("types"):
            raise PPFError("search.start= cannot start from a policy that quantises weights.")
        if instantiate(cfg.agent).role.decides:
            raise PPFError("a rule does not search: leave search.start out, or give another agent.")
    if cfg.mode == "dynamic":
        check_dynamic(cfg)
    if cfg.mode != "static":
        check_ratios(cfg)


def check_read(cfg: DictConfig, given: Sequence[str]) -> None:
    """Raises PPFError if an override changes a key that is not read."""
    mode = cfg.mode
    for key in changed(given):
        reading = [name for name, unread in UNREAD.items() if not lies_in(key, unread)]
        if mode not in reading:
            others = " or ".join(f"mode={other}" for other in reading)
            raise PPFError(f"mode={mode} does not read {key}: leave it out, or give {others}.")
    refuse_unread("a polish", given, _OF_RUNS)
    if not cfg.report_test:
        refuse_unread("search without report_test=true", given, ["sequential", "refit_windows"])
    if drawn_labels(cfg) == 1:  # the dense model's
        refuse_unread("search without labels.count=", given, ["sampler"])


@command(_check)
def main(cfg: DictConfig, fabric: Fabric) -> Outcome:
    """Labels and trains what is missing, searches, measures and reports."""
    _warn_of_selection(cfg)
    clock, may_make = Stopwatch(), cfg.upstream == "make"
    with clock("preparing the model"):
        context = prepare(cfg, fabric, check=partial(_check_model, cfg))
        context = in_bytes(context, cfg)
        space = priced(context, cfg.budget)
        start = _start(cfg, context.model.space)
    parts = context.labelling, context.sites
    changes = clock("gradients of the best policies")(context.calibration.changes)
    without = cfg.mode == "dynamic" or context.model.space.budget == "bytes"
    fit = partial(
        fitted,
        *parts,
        None if without else changes,
        cfg.predictor,
        cfg.trainer,
        cfg.seed,
        fabric.loggers,
    )
    first = partial(fit, may_train=may_make)
    with clock("labelling"):
        labels = collect(
            *(*parts, cfg.sampler, drawn_labels(cfg), cfg.seed),
            may_label=may_make,
        )
    with clock("training the predictor"):
        trained = first(labels)
    features = context.sites.features
    inputs = SearchInputs.of(cfg, fabric, space, features, context.labelling, fit)
    return _MODES[cfg.mode](_Begun(cfg, context, inputs, labels, trained, clock, start))


def _check_model(cfg: DictConfig, text: Text, lm: LanguageModel) -> None:
    """Raises PPFError if model or text do not fit the search; see `EarlyCheck`."""
    space: Space = instantiate(cfg.space, lm.adapter.prunables(lm.model))
    check_budget(cfg.budget, lm, space)
    if cfg.mode == "static":
        for budget in cfg.pareto.values():
            check_cost(budget, lm)
    _start(cfg, space)
    if cfg.report_test:
        text.tokens("test", lm.tokenizer)


def _warn_of_selection(cfg: DictConfig) -> None:
    """Warns if `search.start` was chosen on a selection part."""
    if (file := cfg.search.start) and read_policy(file, cfg.trust_targets).get("selection"):
        say(
            "Warning: the policy of search.start was chosen with the help of a selection part. If"
            " this search has the same part, the perplexities on it are slightly too low."
        )


class _Begun(NamedTuple):
    """What a search needs, in every mode."""

    cfg: DictConfig
    context: PruningContext
    inputs: SearchInputs
    labels: Labels
    trained: Trained
    clock: Stopwatch
    start: Int[Tensor, " sites"] | None


def _start(cfg: DictConfig, space: Space) -> Int[Tensor, " sites"] | None:
    """The policy of `search.start`.

    Raises:
        PPFError: it is of another space.
    """
    if not (file := cfg.search.start):
        return None
    record = read_policy(file, cfg.trust_targets)
    return torch.tensor(space.policy(record["kept"], record["units"]))


def _static(begun: _Begun) -> Outcome:
    """The best policy for one ratio; the metric is its measured log-perplexity."""
    cfg, context, inputs, labels, trained, clock, start = begun
    searched = search(inputs, labels, trained, cfg.ratio, clock, start=start, measure_start=True)
    found = _chosen(begun, searched)
    context.labelling.add_other_ranks()
    summary = static_summary(cfg, context, labels, found, clock.seconds)
    policy = policy_contents(cfg, context, found)
    if not inputs.fabric.is_global_zero:
        return Outcome(found.nll)
    write_json(Path(cfg.paths.run) / "policy.json", policy)
    return _report(begun, summary, found.nll)


def _dynamic(begun: _Begun) -> Outcome:
    """An agent for every ratio, from a learner."""
    cfg, context, inputs, labels, trained, clock, _ = begun
    given = cfg.dynamic, list(cfg.ratios), provenance(context), clock
    return _for_every_ratio(begun, dynamic(inputs, labels, trained, *given))


def _chain(begun: _Begun) -> Outcome:
    """An agent for every ratio, from searches at several ratios."""
    cfg, context, inputs, labels, trained, clock, _ = begun
    given = cfg.dynamic, list(cfg.ratios), provenance(context), clock
    choose = partial(_chosen, begun)
    return _for_every_ratio(begun, chain(inputs, labels, trained, *given, choose))


def _chosen(begun: _Begun, found: Found) -> Found:
    """The result of a search, with its best policies measured on the selection part."""
    cfg, context = begun.cfg, begun.context
    with begun.clock("measuring the best on the selection part"):
        return with_selection(context.labelling, found, cfg.search)


def _for_every_ratio(begun: _Begun, result: FoundAgent) -> Outcome:
    """Reports an agent; the metric is the mean log-perplexity measured along its curve."""
    cfg, context, inputs, _, _, clock, _ = begun
    metric = float(result.curve.measured.mean())
    context.labelling.add_other_ranks()
    if not inputs.fabric.is_global_zero:
        return Outcome(metric)
    result.agent.save(Path(cfg.paths.run))
    summary = agent_summary(cfg, context, result, inputs, clock.seconds)
    return _report(begun, summary, metric)


def _report(begun: _Begun, summary: dict[str, Any], metric: float) -> Outcome:
    """Writes summary.json and the page, gives everything to the loggers, and prints the table."""
    cfg, folder = begun.cfg, Path(begun.cfg.paths.run)
    if cfg.report_test:
        with begun.clock("measuring on the test part"):
            add_test(cfg, begun.context, summary)
    write_json(folder / "summary.json", summary)
    publish_search(folder, begun.inputs.fabric.loggers)
    return Outcome(metric, rows_of_run(summary))


_MODES = {"static": _static, "dynamic": _dynamic, "chain": _chain}
