"""prune: writes the model of a policy, with smaller tensors.

`policy=` names the policy of a search. `search=` with `ratio=` takes that of an agent, and merges
the adapters of a recovery. `path=` names a folder that prune or recover wrote, and writes its model
in another format.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig

from ppf.agents.ratio_agent import RatioAgent, load_agent
from ppf.context import EarlyCheck, PruningContext
from ppf.errors import PPFError
from ppf.evaluation.size import weight_bytes
from ppf.export import Exporter, Pruned, check_out, read_pruned
from ppf.labels.compensating import keep_better
from ppf.llm import LanguageModel, dtype_name, resolve_dtype
from ppf.policy_file import (
    by_site,
    policy_record,
    prepared,
    read_policy,
    refuse_recovered,
    types_of,
)
from ppf.progress import say
from ppf.report.scores import LogPerplexity
from ppf.runtime.resident import adapters_of, has_adapters, resident
from ppf.space import uniform
from ppf.stages.lineage import log_made, log_used
from ppf.text import Text

ONE_PROCESS = True
Exported = tuple[Pruned, dict[str, Any]]
"""A pruned model, and the contents of its policy.json."""


def check(cfg: DictConfig) -> None:
    """Refuses what cannot be pruned, and a folder `out` whose model would be lost."""
    given = sum(bool(cfg[key]) for key in ("policy", "path", "search"))
    if given != 1 or bool(cfg.search) != (cfg.ratio is not None):
        raise PPFError(
            "give one of policy=FILE (a policy.json), path=FOLDER (of prune or recover), and"
            " search=FOLDER (of a search with mode=dynamic|chain) with ratio=R, as in"
            " ratio=0.3."
        )
    if cfg.search:
        agent = load_agent(cfg.search, cfg.trust_targets)
        agent.policy(cfg.ratio)
        check_out(cfg.out, agent.record)
    elif cfg.path:
        record = read_policy(f"{cfg.path}/policy.json", cfg.trust_targets)
        check_out(cfg.out, record, cfg.path)
    else:
        record = read_policy(cfg.policy, cfg.trust_targets)
        refuse_recovered(record, cfg.policy)
        check_out(cfg.out, record)


def main(cfg: DictConfig, fabric: Fabric) -> None:
    """Writes the pruned model into the folder `cfg.out`, with its policy and a model card."""
    exporter: Exporter = instantiate(cfg.export)
    if cfg.path:
        source = _of_folder(cfg, exporter)
    elif cfg.search:
        source = _of_search(cfg, fabric, exporter)
    else:
        source = _of_policy(cfg, fabric, exporter)
    with source as (model, record):
        path = exporter.write(model, Path(cfg.out), record)
    size = weight_bytes(path) if path.is_dir() else path.stat().st_size
    log_used(cfg, fabric.loggers)
    log_made(path, fabric.loggers)
    fabric.log_dict(_metrics(record, size))
    say(f"{size / 2**20:.1f} MiB of weights in {path}")


@contextmanager
def _of_folder(cfg: DictConfig, exporter: Exporter) -> Iterator[Exported]:
    """The model of the folder `cfg.path`."""
    folder = Path(cfg.path)
    record = read_policy(folder / "policy.json", cfg.trust_targets)
    model = read_pruned(folder, resolve_dtype(cfg.dtype))
    if not model.has_policy(record["kept"], record["units"]):
        raise PPFError(
            f"{folder}/policy.json does not describe the weights beside it: export it again."
        )
    exporter.check(model)
    yield model, record


@contextmanager
def _of_policy(cfg: DictConfig, fabric: Fabric, exporter: Exporter) -> Iterator[Exported]:
    """The model of the policy in the file `cfg.policy`."""
    record = read_policy(cfg.policy, cfg.trust_targets)
    early = _early_check(cfg, exporter, record, record["kept"], record["units"])
    context, record = compensated(cfg, fabric, record, early)
    yield Pruned.of(context.model.pruner), record


@contextmanager
def _of_search(cfg: DictConfig, fabric: Fabric, exporter: Exporter) -> Iterator[Exported]:
    """The model of the agent in `cfg.search` at `cfg.ratio`, with its adapters merged."""
    agent = load_agent(cfg.search, cfg.trust_targets)
    kept = by_site(agent.space, agent.policy(cfg.ratio))
    early = _early_check(cfg, exporter, agent.record, kept, agent.space.units_by_name)
    adapted = has_adapters(cfg.search)
    if adapted:  # they fit only the compensation that they were trained with
        context = resident(cfg, fabric, agent.record, adapted=False, check=early)
    else:
        context = prepared(cfg, fabric, agent.record, early)
    pruner, labelling = context.model.pruner, context.labelling
    agent.check_sites(pruner.space)
    record = _record(context, agent, cfg.ratio)
    record["exported"] = _measured(cfg, context, sequential=cfg.sequential and not adapted)
    if not adapted:
        yield Pruned.of(pruner), record
        return
    adapters, trained = adapters_of(cfg.search, context)
    score = LogPerplexity(labelling.present_nll()).record()
    record["exported"]["compensation"] = "adapters"
    record["exported"]["measured"]["adapters"] = score
    record["exported"]["adapters"] = trained
    with adapters.merged():
        yield Pruned.of(pruner), record


def _early_check(
    cfg: DictConfig,
    exporter: Exporter,
    record: Mapping[str, Any],
    kept: Mapping[str, int],
    units: Mapping[str, int],
) -> EarlyCheck:
    """Refuses what the export or the timing cannot do with a model, before the long work.

    Args:
        record: policy.json or agent.json.
        kept: units that each site keeps, by the site's name.
        units: the same of the dense model.
    """
    changed = kept != units or (record.get("types") and cfg.sequential)
    biases = bool(changed) and instantiate(record["config"]["compensation"]).biases

    def check(_: Text, lm: LanguageModel) -> None:
        exporter.check(Pruned.planned(lm, kept, units, biases=biases))
        if cfg.latency:
            instantiate(cfg.speed).check(lm.model.config)

    return check


def compensated(
    cfg: DictConfig, fabric: Fabric, record: dict[str, Any], check: EarlyCheck | None = None
) -> tuple[PruningContext, dict[str, Any]]:
    """The policy's model, with the better of one-shot and sequential compensation.

    Args:
        cfg: of prune or recover.
        check: as for `prepare`.

    Returns:
        The pruned model, and the record with the entry `exported`.
    """
    context = prepared(cfg, fabric, record, check)
    space = context.model.space
    context.model.pruner.apply(space.policy(record["kept"]), types_of(space, record))
    return context, record | {"exported": _measured(cfg, context, sequential=cfg.sequential)}


def _measured(cfg: DictConfig, context: PruningContext, *, sequential: bool) -> dict[str, Any]:
    """Measures the present policy on the labelling part, and leaves it with better compensation.

    Args:
        sequential: also re-estimate the compensation, and keep it if it is better.

    Returns:
        The entry `exported` of policy.json.
    """
    labelling, model = context.labelling, context.model
    piece, lm = labelling.piece, model.lm
    nlls, speed = {"one_shot": labelling.present_nll()}, dict[str, Any]()
    # Before the re-estimation, which another policy would undo.
    test = instantiate(cfg.speed) if cfg.get("latency") else None
    if test:
        speed["pruned"] = test.run(lm.model)
    with model.at(model.space.dense.tolist()):
        dense = labelling.present_nll()
        if test:
            speed["dense"] = test.run(lm.model)
    choice = None
    if sequential:
        choice = keep_better(labelling, context.calibration, cfg.refit_windows)
    if choice and choice.kept == "sequential":
        nlls["sequential"] = labelling.present_nll()
    decided = choice and {
        "one_shot": LogPerplexity(choice.one_shot).record(),
        "sequential": LogPerplexity(choice.sequential).record(),
        "part": choice.part,
        "windows": choice.windows,
    }
    return {
        "compensation": list(nlls)[-1],
        "measured": {name: LogPerplexity(nll).record() for name, nll in nlls.items()},
        "choice": decided,
        "part": "labelling",
        "windows": len(piece.windows),
        "window": piece.windows.shape[1],
        "context": piece.first,
        "dtype": dtype_name(lm.dtype),
        "dense": LogPerplexity(dense).record(),
    } | ({"speed": speed} if speed else {})


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


def _metrics(record: Mapping[str, Any], size: int) -> dict[str, float]:
    """For loggers, as in "one_shot/perplexity" and "pruned/decode_tokens_per_second/batch_1"."""
    exported = record.get("exported") or {}
    scores = {"dense": exported.get("dense")} | exported.get("measured", {})
    found = {"ratio": record["ratio"]["achieved"], "bytes": size}
    for name, score in scores.items():
        if score and score["perplexity"] is not None:
            found[f"{name}/perplexity"] = score["perplexity"]
    for name, speeds in (exported.get("speed") or {}).items():
        for speed in speeds:
            for phase in ("prefill", "decode"):
                found[f"{name}/{phase}_tokens_per_second/batch_{speed['batch']}"] = speed[phase]
    return found
