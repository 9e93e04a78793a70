"""search: finds the policy of lowest perplexity at a ratio, or an agent for every ratio."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig

from ppf.artefacts import plain, with_code, write_json
from ppf.context import PruningContext, prepare
from ppf.labels.table import PROPOSED
from ppf.plan import drawn_labels
from ppf.policy_file import provenance
from ppf.progress import Stopwatch
from ppf.records.run import Outcome
from ppf.report.search import publish_search, rows_of_run
from ppf.search import AgentRuns, FoundAgent, Problem, RealModel, selection_part
from ppf.stages.budgets import priced
from ppf.stages.byte_budget import check_bytes as check
from ppf.stages.byte_budget import in_bytes
from ppf.stages.collect import collect
from ppf.stages.results import agent_summary, policy_contents, static_summary
from ppf.stages.tested import add_test
from ppf.stages.train import folds, train

__all__ = ["check", "main"]


def main(cfg: DictConfig, fabric: Fabric) -> Outcome:
    """Labels and trains what is missing, searches, measures and reports.

    The metric is the log-perplexity of the policy found on the labelling part, or its mean over the
    ratios at which an agent is reported; nats per token.
    """
    clock, folder = Stopwatch(), Path(cfg.paths.run)
    with clock("preparing the model"):
        context = in_bytes(prepare(cfg, fabric), cfg)
    labelling, may_make = context.labelling, cfg.upstream == "make"
    with clock("labelling"):
        labels = collect(
            *(labelling, context.sites, cfg.sampler, drawn_labels(cfg), cfg.seed),
            folds=folds(cfg.predictor),
            may_label=may_make,
        )
    fit = _fit(cfg, fabric, context, clock)
    with clock("training the predictor"):
        trained = fit(labels, may_train=may_make)
    problem = _problem(cfg, fabric, context, fit)
    found = instantiate(cfg.search).search(problem, labels, trained, clock)
    labelling.add_other_ranks()
    if isinstance(found, FoundAgent):
        contents = replace(found.agent, record=provenance(context))
        summary = agent_summary(cfg, context, problem, found)
    else:  # all ranks measure costs together
        contents = policy_contents(cfg, context, found)
        summary = static_summary(cfg, context, labels, found)
    if fabric.is_global_zero:
        if isinstance(found, FoundAgent):
            contents.save(folder)
        else:
            write_json(folder / "policy.json", contents)
        if cfg.report_test:
            with clock("measuring on the test part"):
                add_test(cfg, context, summary)
        write_json(folder / "summary.json", summary | {"seconds": clock.seconds})
        publish_search(folder, fabric.loggers)
    return Outcome(found.nll, rows_of_run(summary))
