"""prune: writes the model of a policy, with smaller tensors.

`policy=` names the policy of a search. `search=` with `ratio=` takes that of an agent, and merges
the adapters of a recovery. `path=` names a folder that prune or recover wrote, or one of a dense
model, and writes its model in another format.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig

from ppf.agents.ratio_agent import RatioAgent, load_agent
from ppf.errors import PPFError
from ppf.evaluation import LogPerplexity
from ppf.evaluation.size import weight_bytes
from ppf.export import Exporter, Pruned, check_out, counted, read_pruned, smallest
from ppf.labels.compensating import keep_better
from ppf.labels.context import PruningContext
from ppf.llm import dtype_name, local_folder, resolve_dtype
from ppf.policy_file import (
    by_site,
    calibration_windows,
    policy_record,
    prepared,
    read_policy,
    refuse_recovered,
    types_of,
)
from ppf.progress import say
from ppf.pruning.elastic import Adapters
from ppf.runtime.resident import adapters_of, has_adapters, resident
from ppf.space import uniform
from ppf.stages.lineage import log_artifact, log_used
from ppf.stages.upload import check_upload, upload

ONE_PROCESS = True


def check(cfg: DictConfig) -> None:
    """Refuses what cannot be pruned, and a folder `out` whose model would be lost."""
    given = sum(bool(cfg[key]) for key in ("policy", "path", "search"))
    if given != 1 or bool(cfg.search) != (cfg.ratio is not None):
        raise PPFError(
            "give one of policy=FILE (a policy.json), path=FOLDER (of prune or recover, or of a"
            " dense model), and search=FOLDER (of a search with mode=dynamic|chain) with"
            " ratio=R, as in ratio=0.3."
        )
    if cfg.search:
        agent = load_agent(cfg.search, cfg.trust_targets)
        agent.policy(cfg.ratio)
        check_out(cfg.out, agent.record)
    elif cfg.path:
        check_out(cfg.out, _stored(cfg), cfg.path)
    else:
        record = read_policy(cfg.policy, cfg.trust_targets)
        refuse_recovered(record, cfg.policy)
        check_out(cfg.out, record)
    check_upload(cfg)


def main(cfg: DictConfig, fabric: Fabric) -> None:
    """Writes the pruned model into the folder `cfg.out`, with its policy and a model card."""
    exporter: Exporter = instantiate(cfg.export)
    with ExitStack() as merged:
        if cfg.path:
            record = _stored(cfg)
            model = read_pruned(Path(cfg.path), resolve_dtype(cfg.dtype))
            exporter.check(smallest(model, record))
        elif cfg.policy:
            record = read_policy(cfg.policy, cfg.trust_targets)
            context, record = compensated(cfg, fabric, record, exporter)
            model = Pruned.of(context.model.pruner)
        else:
            context, record, adapters = _of_search(cfg, fabric, exporter)
            if adapters:
                merged.enter_context(adapters.merged())
            model = Pruned.of(context.model.pruner)
        written = smallest(model, record)
        if not cfg.path:
            record = counted(record, model, written)
        windows = partial(calibration_windows, record, cfg, written.lm.tokenizer)
        path = exporter.weighted(written, windows).write(written, Path(cfg.out), record)
    size = weight_bytes(path) if path.is_dir() else path.stat().st_size
    log_used(cfg, fabric.loggers)
    log_artifact(fabric.loggers, [path], path.resolve().name, "model")
    fabric.log_dict(_metrics(record, size))
    say(f"{size / 2**20:.1f} MiB of weights in {path}")
    upload(cfg)


def _stored(cfg: DictConfig) -> dict[str, Any]:
    """The policy.json of the folder `cfg.path`; empty: its model is dense."""
    file = Path(local_folder(cfg.path, "path"), "policy.json")
    return read_policy(file, cfg.trust_targets) if file.is_file() else {}


def compensated(
    cfg: DictConfig, fabric: Fabric, record: dict[str, Any], exporter: Exporter
) -> tuple[PruningContext, dict[str, Any]]:
    """The policy's model, with the better of one-shot and sequential compensation.

    Args:
        cfg: of prune or recover.
        exporter: refuses a model that it cannot write.

    Returns:
        The pruned model, and the record with the entry `exported`.
    """
    context = prepared(cfg, fabric, record)
    space, pruner = context.model.space, context.model.pruner
    pruner.apply(space.policy(record["kept"]), types_of(space, record))
    exporter.check(smallest(Pruned.of(pruner), record))
    return context, record | {"exported": _measured(cfg, context, sequential=cfg.sequential)}


def _of_search(
    cfg: DictConfig, fabric: Fabric, exporter: Exporter
) -> tuple[PruningContext, dict[str, Any], Adapters | None]:
    """The model of the agent in `cfg.search` at `cfg.ratio`.

    Returns:
        The pruned model, the contents of its policy.json, and its adapters if it has any.
    """
    agent = load_agent(cfg.search, cfg.trust_targets)
    adapted = has_adapters(cfg.search)
    if adapted:  # they fit only the compensation that they were trained with
        context = resident(cfg, fabric, agent.record, adapted=False)
    else:
        context = prepared(cfg, fabric, agent.record)
    agent.check_sites(context.model.space)
    context.model.pruner.apply(agent.policy(cfg.ratio))
    exporter.check(smallest(Pruned.of(context.model.pruner), {}))
    record = _record(context, agent, cfg.ratio)
    record["exported"] = _measured(cfg, context, sequential=cfg.sequential and not adapted)
    if not adapted:
        return context, record, None
    adapters, trained = adapters_of(cfg.search, context)
    score = LogPerplexity(context.labelling.present_nll()).record()
    record["exported"] |= {"compensation": "adapters", "adapters": trained}
    record["exported"]["measured"]["adapters"] = score
    return context, record, adapters


def _measured(cfg: DictConfig, context: PruningContext, *, sequential: bool) -> dict[str, Any]:
    """Measures the present policy on the labelling part, and leaves it with better compensation.

    Args:
        sequential: also re-estimate the compensation, and keep it if it is better.

    Returns:
        The entry `exported` of policy.json.
    """
    labelling, model = context.labelling, context.model
    nlls = {"one_shot": labelling.present_nll()}
    # Before the re-estimation, which another policy would undo.
    with model.at(model.space.dense.tolist()):
        dense = labelling.present_nll()
    choice = keep_better(labelling, context.calibration, cfg.refit_windows) if sequential else None
    if choice and choice.kept == "sequential":
        nlls["sequential"] = labelling.present_nll()
    return {
        "compensation": list(nlls)[-1],
        "measured": {name: LogPerplexity(nll).record() for name, nll in nlls.items()},
        "choice": choice and choice.record(),
        "part": "labelling",
        "windows": len(labelling.windows),
        "window": labelling.windows.shape[1],
        "dtype": dtype_name(model.lm.dtype),
        "dense": LogPerplexity(dense).record(),
    }


def _record(context: PruningContext, agent: RatioAgent, ratio: float) -> dict[str, Any]:
    """The contents of policy.json of an agent's policy, which the model has already."""
    model, labelling, space = context.model, context.labelling, context.model.space
    kept = model.pruner.kept
    even = uniform(agent.space, torch.tensor([ratio], dtype=torch.double))[0].tolist()
    with model.pruner.at(even):
        baseline = LogPerplexity(labelling.present_nll()).record() | {"part": "labelling"}
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
    """For loggers, as in "one_shot/perplexity"."""
    exported = record.get("exported") or {}
    scores = {"dense": exported.get("dense")} | exported.get("measured", {})
    found = {"ratio": record["ratio"]["achieved"] if record else 0.0, "bytes": size}
    for name, score in scores.items():
        if score and score["perplexity"] is not None:
            found[f"{name}/perplexity"] = score["perplexity"]
    return found
