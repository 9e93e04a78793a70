"""evaluate: test perplexity, size, speed and tasks, of a policy or of folders."""

from collections.abc import Callable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig, OmegaConf
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ppf.artefacts import write_json
from ppf.conf import DEFAULT_TEXT, read_option
from ppf.errors import PPFError
from ppf.evaluation import (
    LogPerplexity,
    Mean,
    Tasks,
    answer,
    parameters,
    scored_windows,
    weight_bytes,
    window_losses,
)
from ppf.export import file_bytes, load_folder, read_description, round_weights
from ppf.labels.compensating import keep_better
from ppf.llm import (
    check_head,
    check_window,
    dtype_name,
    load_description,
    local_folder,
    resolve_dtype,
)
from ppf.overrides import quoted
from ppf.policy_file import policy_config, prepared, read_policy, refuse_recovered, types_of
from ppf.progress import say
from ppf.report.publish import publish_file
from ppf.stages.about import about, next_command
from ppf.stages.lineage import folders, log_used
from ppf.stages.outcome import Outcome
from ppf.text import Text, build_text, warn_of_shared_documents

ONE_PROCESS = True
MeasureModel = Callable[..., None]
"""Measures a model: its name, model, tokenizer, size, and the ratios achieved and asked."""


def check(cfg: DictConfig) -> None:
    """Refuses a call that names nothing to measure, or a model whose weights are elsewhere."""
    if bool(cfg.policy) == bool(folders(cfg)):
        raise PPFError(
            "give either policy=FILE (a policy.json) or path=FOLDER (a Hugging Face folder)."
        )
    if cfg.names and len(cfg.names) != len(folders(cfg)):
        raise PPFError("names= needs one name for each folder of path=.")
    for folder in folders(cfg):
        local_folder(folder, "path")
    if cfg.policy:
        refuse_recovered(read_policy(cfg.policy, cfg.trust_targets), cfg.policy)


def main(cfg: DictConfig, fabric: Fabric) -> Outcome:
    """Measures what `cfg.policy` or `cfg.path` names on one text, and writes evaluation.json."""
    # A wrong name of a task fails before the work starts.
    given = {"limit": cfg.limit, "batch": cfg.batch, "fewshot": cfg.num_fewshot}
    tasks = Tasks(cfg.tasks, **given) if cfg.tasks else None
    files = [Path(folder) / "policy.json" for folder in folders(cfg)]
    known = [cfg.policy] if cfg.policy else [file for file in files if file.is_file()]
    records = {Path(file): read_policy(file, cfg.trust_targets) for file in known}
    text = _text(cfg, records)
    # Of policies that round weights, the ratio is a share of bytes. A table has one kind of ratio.
    rounded = bool(records) and all(record.get("types") for record in records.values())
    results, windows = list[dict[str, Any]](), list[torch.Tensor]()

    def measure(
        name: str, model: Any, tokenizer: Any, size: int, *ratios: float | None, timed: bool = True
    ) -> None:
        say(f"Measuring {name}.")
        speed = instantiate(cfg.speed).run(model) if cfg.latency and timed else []
        windows.append(scored_windows(text, tokenizer, cfg.window))
        nll, std_error = Mean.of(window_losses(model, windows[-1], batch=cfg.batch))
        achieved, asked = ratios
        results.append(
            {
                "name": name,
                "ratio": achieved,
                "nll": nll,  # per token
                "perplexity": LogPerplexity(nll).perplexity,
                "parameters": parameters(model),
                "bytes": size,
                "speed": speed,
                "tasks": tasks.scores(model, tokenizer) if tasks else {},
                "answers": {text: answer(model, tokenizer, text) for text in cfg.prompts},
                "std_error": std_error if isfinite(std_error) else None,  # of `nll`, over windows
                "asked": asked,
            }
        )

    if cfg.policy:
        (record,) = records.values()
        _measure_policy(cfg, fabric, text, record, measure)
    else:
        _measure_folders(cfg, fabric, text, records, rounded, measure)
    if not all(torch.equal(one, windows[0]) for one in windows):
        say("The folders have different tokenizers: their losses per token cannot be compared.")
    count, window = windows[-1].shape
    evaluation = {
        "text": text.name,
        "windows": count,
        "window": window,
        "results": results,
        "rounded": rounded,
    }
    path = Path(cfg.paths.run) / "evaluation.json"
    write_json(path, evaluation | _origin(cfg, fabric, rounded))
    log_used(cfg, fabric.loggers)
    publish_file(path, "evaluate", fabric.loggers)
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


def _measure_policy(
    cfg: DictConfig, fabric: Fabric, text: Text, record: Mapping[str, Any], measure: MeasureModel
) -> None:
    """Measures the policy's model; with `cfg.baselines` also the dense and a uniformly pruned one.

    With `cfg.sequential`, both pruned models are re-estimated if that helps, as `prune` does.
    """
    model = policy_config(record, cfg).model
    _check_lengths(cfg, text, *load_description(model, cfg.paths.cache))  # before the long work
    context = prepared(cfg, fabric, record)
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
            size = parameters(model) * itemsize - pruner.bytes_of_rounding
            ratio = pruner.bytes_saved if rounded else float(space.ratio(torch.tensor(kept)))
            asked = None if name == "dense" else record["ratio"]["asked"]
            measure(name, model, lm.tokenizer, size, ratio, asked)


def _measure_folders(
    cfg: DictConfig,
    fabric: Fabric,
    text: Text,
    records: Mapping[Path, Mapping[str, Any]],
    rounded: bool,
    measure: MeasureModel,
) -> None:
    """Measures the models of the folders `cfg.path`, one after another."""
    for given in folders(cfg):  # before the first one is measured
        _check_lengths(cfg, text, *read_description(Path(given)))
    short = [Path(given).resolve().name for given in folders(cfg)]
    names = cfg.names or (short if len(set(short)) == len(short) else folders(cfg))
    for name, given in zip(names, folders(cfg), strict=True):
        path = Path(given)
        model, tokenizer = load_folder(path, resolve_dtype(cfg.dtype, fabric.device))
        model = model.eval().to(fabric.device)
        check_head(model, scored_windows(text, tokenizer, cfg.window)[:1, :16])
        record = records.get(path / "policy.json")
        alike = record is not None and bool(record.get("types")) == rounded
        ratio = record["ratio"] if record and alike else {"achieved": None, "asked": None}
        ratios = ratio["achieved"], ratio["asked"]
        measure(name, model, tokenizer, weight_bytes(path), *ratios)
        if cfg.round_to:
            types = record.get("types") if record else None
            round_weights(model, cfg.round_to, types)
            size = file_bytes(model, cfg.round_to, types)
            # Its weights are still in 16 or 32 bits here, so its speed is not that of the file.
            form = "quantised" if types else cfg.round_to
            measure(f"{name}, {form}", model, tokenizer, size, *ratios, timed=False)
        del model  # before the next one is loaded


def _text(cfg: DictConfig, records: Mapping[Path, Mapping[str, Any]]) -> Text:
    """The given text, or that of the first policy, or the default one."""
    configs = {file: policy_config(record, cfg) for file, record in records.items()}
    texts = (config.text for config in configs.values())
    default = read_option("text", DEFAULT_TEXT)
    text = OmegaConf.select(cfg, "text") or next(texts, None) or default
    tested = OmegaConf.create({"text": text, "paths": cfg.paths})
    for file, config in configs.items():
        warn_of_shared_documents(tested, config, str(file))
    return build_text(text, cfg.paths.cache)


def _check_lengths(
    cfg: DictConfig, text: Text, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raises PPFError if the windows of the text or the timed prompts do not fit the model."""
    scored_windows(text, tokenizer, cfg.window)
    check_window(cfg.window or text.window, config, "window")
    if cfg.latency:
        instantiate(cfg.speed).check(config)


def _origin(cfg: DictConfig, fabric: Fabric, rounded: bool) -> dict[str, Any]:
    """What the report says about the evaluation beside its results."""
    own = ("sequential", "refit_windows") if cfg.policy else ()
    names = (*own, "window", "seed", *(["num_fewshot", "limit"] if cfg.tasks else []))
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
    return {**about("evaluate"), "settings": settings, "next_commands": following}
