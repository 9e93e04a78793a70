"""prune, search=FOLDER ratio=R: the model of a dynamic search at one ratio."""

import math
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig

from ppf.agents.ratio_agent import RatioAgent, load_agent
from ppf.context import PruningContext, prepare
from ppf.export.base import Exporter
from ppf.policy_file import by_site, checked_config, policy_record
from ppf.pruning.elastic import ADAPTERS, TRAINING, Adapters
from ppf.records import read
from ppf.records.agent import agent_folder
from ppf.records.policy import AdaptersRecord
from ppf.report.scores import LogPerplexity
from ppf.runtime.resident import origin, resident
from ppf.space import uniform
from ppf.stages.prune import adds_biases, check_export, chosen, exported, known_before


def prune_at(cfg: DictConfig, fabric: Fabric) -> tuple[Path, dict[str, Any]]:
    """Exports the search's model at `cfg.ratio`, with the adapters of a recovery merged.

    Without adapters and with `cfg.sequential`, the better of one-shot and re-estimated
    compensation is exported.

    Returns:
        What `cfg.export` wrote, and the record of the policy.

    Raises:
        PPFError: there is no dynamic search, it has not learnt the ratio, or its model changed.
    """
    agent, search = load_agent(cfg.search, cfg.trust_targets), agent_folder(cfg.search)
    exporter: Exporter = instantiate(cfg.export)
    timed = cfg.speed if cfg.latency else None
    kept, whole = agent.policy(cfg.ratio), agent.space.dense.tolist()
    exporter.check_policy(by_site(agent.space, kept), by_site(agent.space, whole))
    given = checked_config(agent.record, cfg)
    pruned = kept != whole
    check = partial(check_export, exporter, timed, pruned and adds_biases(given))
    adapted = (search / ADAPTERS).is_file()
    if adapted:  # they fit only the compensation that they were trained with
        context = resident(cfg, fabric, agent.record, adapted=False, check=check)
    else:
        given.sequential, given.refit_windows = cfg.sequential, cfg.refit_windows  # it takes memory
        context = prepare(given, fabric, dtype=cfg.dtype, check=check)
    pruner, labelling = context.model.pruner, context.labelling
    agent.check_sites(pruner.space)
    with pruner.at(kept):
        exporter.check(pruner)
    record = _record(context, agent, cfg.ratio)
    known = known_before(labelling, timed)
    nll = record["measured"]["nll"]
    choice, scores = None, {"one_shot": math.nan if nll is None else nll}
    merged: AbstractContextManager[None] = nullcontext()
    if adapted:
        merged = Adapters.load(search, pruner, origin(context)).merged()
        scores["adapters"] = labelling.present_nll()
        if (file := search / TRAINING).is_file():
            known["adapters"] = read(file, AdaptersRecord, "train the adapters again")
    elif cfg.sequential:
        choice = chosen(context, exporter, cfg.refit_windows)
    record["exported"] = exported(labelling, scores, choice) | known
    with merged:
        return exporter.write(pruner, Path(cfg.out), record), record


def _record(context: PruningContext, agent: RatioAgent, ratio: float) -> dict[str, Any]:
    """The contents of policy.json; the model is left at the agent's policy."""
    model, labelling, space = context.model, context.labelling, context.model.space
    even = uniform(agent.space, torch.tensor([ratio], dtype=torch.double))[0].tolist()
    with model.pruner.at(even):
        baseline = LogPerplexity(labelling.present_nll()).record() | {"part": "labelling"}
    kept = agent.policy(ratio)
    model.pruner.apply(kept)
    numbers = {
        "ratio": {
            "asked": ratio,
            "achieved": float(space.ratio(torch.tensor(kept))),
            "of_all_parameters": 1 - model.pruner.parameters(kept) / model.parameters,
        },
        "budget": {
            "name": agent.space.budget,
            "saved": float(agent.space.saved(torch.tensor(kept))),
        },
        "predicted": LogPerplexity(*agent.predicted(ratio)).record(),
        "measured": LogPerplexity(labelling.present_nll()).record() | {"part": "labelling"},
        "uniform": {"kept": by_site(space, even), "measured": baseline},
    }
    record = policy_record(context, kept, numbers, predictor="")
    return record | {"signatures": agent.record["signatures"]}
