"""search: finds the policy of lowest perplexity at a ratio, or an agent for every ratio."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig

from ppf.artefacts import write_json
from ppf.errors import PPFError
from ppf.labels.context import PruningContext, prepare
from ppf.policy_file import provenance, read_policy
from ppf.policy_search import AgentResult, AgentRuns, Problem, RealModel
from ppf.progress import Stopwatch
from ppf.report.publish import publish_file
from ppf.stages.budgets import priced
from ppf.stages.byte_budget import check_bytes, in_bytes
from ppf.stages.collect import collect
from ppf.stages.fit import Train, fitted
from ppf.stages.lineage import log_search
from ppf.stages.outcome import Outcome
from ppf.stages.results import agent_summary, policy_contents, rows_of_run, static_summary
from ppf.stages.tested import add_delivered, add_test


def check(cfg: DictConfig) -> None:
    """Raises PPFError if settings do not fit each other, or `search.start` cannot be read."""
    check_bytes(cfg)
    biases = instantiate(cfg.compensation).biases
    if cfg.space.get("stock") and (biases or cfg.budget.name == "bytes"):
        raise PPFError(
            "space=stock makes models of the family's own class, without new biases and without"
            " budget=bytes: give compensation=least_squares_without_bias."
        )
    if start := cfg.search.get("start"):
        read_policy(start, cfg.trust_targets)


def main(cfg: DictConfig, fabric: Fabric) -> Outcome:
    """Labels and trains what is missing, searches, measures and reports.

    The metric is the log-perplexity of the policy found on the labelling part, or its mean over the
    ratios at which an agent is measured; nats per token.
    """
    clock, folder = Stopwatch(), Path(cfg.paths.run)
    with clock("preparing the model"):
        context = in_bytes(prepare(cfg, fabric), cfg)
    if cfg.report_test:  # a part that is too short is refused before the search
        context.text.tokens("test", context.model.lm.tokenizer)
    with clock("labelling"):
        labels = collect(cfg, context)
    changes = None
    if cfg.mode != "dynamic" and context.model.space.budget != "bytes":
        changes = clock("gradients of the best policies")(context.calibration.changes)
    fit = partial(fitted, cfg, fabric, context, changes)
    with clock("training the predictor"):
        trained = fit(labels)
    problem = _problem(cfg, fabric, context, fit)
    found = instantiate(cfg.search).search(problem, labels, trained, clock)
    context.labelling.add_other_ranks()
    if isinstance(found, AgentResult):
        summary = agent_summary(cfg, context, found, clock.seconds)
        write: partial[Any] = partial(replace(found.agent, record=provenance(context)).save, folder)
    else:  # all ranks call these, since they measure costs together
        summary = static_summary(cfg, context, labels, found, clock.seconds)
        policy = policy_contents(cfg, context, found)
        write = partial(write_json, folder / "policy.json", policy)
    if fabric.is_global_zero:
        write()
        if cfg.sequential and not isinstance(found, AgentResult):
            with clock("sequential compensation"):
                add_delivered(cfg, context, found.kept, summary)
        if cfg.report_test:
            with clock("measuring on the test part"):
                add_test(cfg, context, summary)
        write_json(folder / "summary.json", summary)
        log_search(cfg, folder, found.trained, fabric.loggers)
        publish_file(folder / "summary.json", "search", fabric.loggers)
    return Outcome(found.nll, rows_of_run(summary))


def _problem(cfg: DictConfig, fabric: Fabric, context: PruningContext, fit: Train) -> Problem:
    """What is searched, for every mode."""
    agent = instantiate(cfg.agent)
    return Problem(
        agent,
        replace(context.sites.features, space=priced(context, cfg.budget)),
        {} if agent.baseline else instantiate(cfg.rules),
        list(cfg.ratios) if "ratios" in cfg else [cfg.ratio],
        RealModel.of(context.labelling, fit),
        AgentRuns(fabric, cfg.seed),
        cfg.trust_targets,
    )
