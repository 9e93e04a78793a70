"""evaluate: test perplexity, size, speed and tasks, of a policy or of folders."""

from collections.abc import Iterator, Mapping
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import torch
from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ppf.artefacts import write_json
from ppf.errors import PPFError
from ppf.evaluation import Tasks, parameters, pieces_loss, scored_pieces, weight_bytes
from ppf.export import load_folder, read_description
from ppf.labels.compensating import keep_better
from ppf.llm import (
    LanguageModel,
    check_head,
    check_window,
    dtype_name,
    local_folder,
    resolve_dtype,
)
from ppf.overrides import quoted
from ppf.policy_file import policy_config, prepared, read_policy, refuse_recovered, types_of
from ppf.progress import say
from ppf.records.run import Outcome
from ppf.report.evaluation import publish_evaluation
from ppf.report.origin import next_command, origin
from ppf.stages.lineage import folders, log_used
from ppf.text import Text, build_text, default_text
from ppf.text.identity import warn_of_shared_documents

ONE_PROCESS = True


def check(cfg: DictConfig) -> None:
    """Refuses a call that names nothing to measure, or a model whose weights are elsewhere."""
    if bool(cfg.policy) == bool(folders(cfg)):
        raise PPFError(
            "give either policy=FILE (a policy.json) or path=FOLDER (a Hugging Face folder)."
        )
    for folder in folders(cfg):
        local_folder(folder, "path")
    if cfg.policy:
        refuse_recovered(read_policy(cfg.policy, cfg.trust_targets), cfg.policy)


def main(cfg: DictConfig, fabric: Fabric) -> Outcome:
    """Measures what `cfg.policy` or `cfg.path` names on one text, and writes evaluation.json."""
    # A wrong name of a task fails before the work starts.
    tasks = Tasks(cfg.tasks, limit=cfg.limit, batch=cfg.batch) if cfg.tasks else None
    files = [Path(folder) / "policy.json" for folder in folders(cfg)]
    known = [cfg.policy] if cfg.policy else [file for file in files if file.is_file()]
    records = {Path(file): read_policy(file, cfg.trust_targets) for file in known}
    text = _text(cfg, records)
    # Of policies that round weights, the ratio is a share of bytes. A table has one kind of ratio.
    rounded = bool(records) and all(record.get("types") for record in records.values())
    if cfg.policy:
        models = _of_policy(cfg, fabric, text, *records.values())
    else:
        models = _of_folders(cfg, fabric, text, records, rounded)
    results, windows = list[dict[str, Any]](), []
    for found in models:
        say(f"Measuring {found.name}.")
        timed = instantiate(cfg.speed).run(found.model) if cfg.latency else []
        pieces = scored_pieces(text, found.tokenizer, cfg.window, cfg.stride)
        nll, std_error = pieces_loss(found.model, pieces, batch=cfg.batch)
        windows.append(pieces)
        results.append(
            {
                "name": found.name,
                "ratio": found.ratio,
                "nll": nll,  # per token
                "perplexity": float(torch.tensor(nll, dtype=torch.double).exp()),
                "parameters": parameters(found.model),
                "bytes": found.size,
                "speed": timed,
                "tasks": tasks.scores(found.model, found.tokenizer) if tasks else {},
                "std_error": std_error if isfinite(std_error) else None,  # of `nll`, over windows
                "asked": found.asked,
            }
        )
        del found  # before the next one is loaded
    first, *others = ([piece.windows.tolist() for piece in pieces] for pieces in windows)
    if any(other != first for other in others):
        say("The folders have different tokenizers: their losses per token cannot be compared.")
    pieces = windows[-1]
    count, window = sum(len(x.windows) for x in pieces), pieces[0].windows.shape[1]
    evaluation = {
        "text": text.name,
        "windows": count,
        "window": window,
        "stride": cfg.stride or window,
        "results": results,
        "rounded": rounded,
    }
    path = Path(cfg.paths.run) / "evaluation.json"
    write_json(path, evaluation | _origin(cfg, fabric, rounded))
    log_used(cfg, fabric.loggers)
    publish_evaluation(path.parent, fabric.loggers)
    rows = [
        {
            # A sweep compares models by the ratio that was asked for.
            "ratio": row["ratio"] if row["asked"] is None else row["asked"],
            "test_ppl": row["perplexity"],
            "parameters": row["parameters"],
            "model": row["name"],
        }
        for row in results
    ]
    return Outcome(results[-1]["nll"], rows)


class Measured(NamedTuple):
    """A loaded model that is to be measured.

    Args:
        ratio: share of the prunable parameters that is removed, or of their bytes that a GGUF file
            saves if the policy rounds weights; None: unknown.
        asked: ratio that the policy was found for; None: the model is dense, or no policy is known.
        size: bytes of the weights: on disk for a folder, in memory for a policy; if the policy
            rounds weights, in a file in which all other weights have 16 bits.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    ratio: float | None
    asked: float | None
    size: int


def _of_policy(
    cfg: DictConfig, fabric: Fabric, text: Text, record: Mapping[str, Any]
) -> Iterator[Measured]:
    """The policy's model; with `cfg.baselines` also the dense and a uniformly pruned one.

    With `cfg.sequential`, both pruned models are re-estimated if that helps, as `prune` does.
    """

    def check(_: Text, lm: LanguageModel) -> None:
        _check_fit(cfg, text, lm.model.config, lm.tokenizer)

    context = prepared(cfg, fabric, record, check)
    space, pruner, lm = context.model.space, context.model.pruner, context.model.lm
    policies: dict[str, Mapping[str, Any]] = {"PPF": record}
    if cfg.baselines:
        dense = {"kept": space.units_by_name}
        policies = {"dense": dense, "uniform": record["uniform"], "PPF": record}
    rounded = bool(record.get("types"))
    itemsize = 2 if rounded else lm.dtype.itemsize  # a GGUF file rounds to 16 bits or less
    for name, policy in policies.items():
        kept = space.policy(policy["kept"])
        with pruner.at(kept, types_of(space, policy)) as model:
            if cfg.sequential:
                keep_better(context.labelling, context.calibration, cfg.refit_windows)
            yield Measured(
                name,
                model,
                lm.tokenizer,
                pruner.bytes_saved if rounded else float(space.ratio(torch.tensor(kept))),
                None if name == "dense" else record["ratio"]["asked"],
                parameters(model) * itemsize - pruner.bytes_of_rounding,
            )


def _of_folders(
    cfg: DictConfig,
    fabric: Fabric,
    text: Text,
    records: Mapping[Path, Mapping[str, Any]],
    rounded: bool,
) -> Iterator[Measured]:
    """The models of the folders `cfg.path`, one after another."""
    if not cfg.trust_remote_code:
        for given in folders(cfg):  # before the first one is measured
            _check_fit(cfg, text, *read_description(Path(given)))
    for name, given in zip(names_of(folders(cfg)), folders(cfg), strict=True):
        path = Path(given)
        dtype = resolve_dtype(cfg.dtype, fabric.device)
        model, tokenizer = load_folder(path, dtype, trust_remote_code=cfg.trust_remote_code)
        model = model.eval().to(fabric.device)
        (first, *_) = scored_pieces(text, tokenizer, cfg.window, cfg.stride)
        check_head(model, first.windows[:1, :16])
        record = records.get(path / "policy.json")
        alike = record is not None and bool(record.get("types")) == rounded
        ratio = record["ratio"] if record and alike else {"achieved": None, "asked": None}
        yield Measured(
            name, model, tokenizer, ratio["achieved"], ratio["asked"], weight_bytes(path)
        )
        del model  # before the next one is loaded


def names_of(paths: list[str]) -> list[str]:
    """The names of folders; their paths if two folders have the same name."""
    names = [Path(path).resolve().name for path in paths]
    return names if len(set(names)) == len(names) else paths


def _text(cfg: DictConfig, records: Mapping[Path, Mapping[str, Any]]) -> Text:
    """The given text, or that of the first policy, or the default one."""
    configs = {file: policy_config(record, cfg) for file, record in records.items()}
    texts = (config.text for config in configs.values())
    text = OmegaConf.select(cfg, "text") or next(texts, None) or default_text()
    tested = OmegaConf.create({"text": text, "paths": cfg.paths})
    for file, config in configs.items():
        warn_of_shared_documents(tested, config, str(file))
    return build_text(text, cfg.paths.cache)


def _check_fit(
    cfg: DictConfig, text: Text, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raises PPFError if the windows of the text or the timed prompts do not fit the model."""
    scored_pieces(text, tokenizer, cfg.window, cfg.stride)
    check_window(cfg.window or text.window, config, "window")
    if cfg.latency:
        instantiate(cfg.speed).check(config)


def _origin(cfg: DictConfig, fabric: Fabric, rounded: bool) -> dict[str, Any]:
    """What the report says about the evaluation beside its results."""
    own = ("sequential", "refit_windows") if cfg.policy else ()
    names = (*own, "window", "stride", "seed")
    settings = {name: cfg[name] for name in names if cfg[name] is not None}
    settings["dtype"] = dtype_name(resolve_dtype(cfg.dtype, fabric.device))
    following = {}
    if cfg.policy:
        given = [
            f"policy={quoted(cfg.policy)}",
            "out=pruned",
            *(["export=gguf"] if rounded else []),
        ]
        following["Write the smaller model"] = next_command("prune", *given)
    return {**origin("evaluate"), "settings": settings, "next_commands": following}
