"""compress: makes a model smaller, from the search to a file and its comparison with the dense one.

Each step is the command of that name, in a folder of its own below the run's. What a step has
finished lies below `paths.artefacts`, so the same command goes on where a killed one was.
"""

import gc
import importlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.modeling import convert_file_size_to_int
from hydra import compose, initialize_config_module
from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig, OmegaConf
from torch import nn

from ppf.conf import without_others
from ppf.errors import PPFError
from ppf.export import Exporter, check_out
from ppf.export.gguf import GGUF
from ppf.export.pruned import whole
from ppf.llm import LanguageModel, load_description, resolve_dtype
from ppf.llm.shapes import skeleton
from ppf.llm.sources import checkpoint_of, small_file
from ppf.progress import say
from ppf.report.evaluation import page
from ppf.report.numbers import mebibytes, percent
from ppf.stages.outcome import Outcome
from ppf.stages.upload import check_upload, upload

ONE_PROCESS = True
_HIGHEST = 0.9  # pruning ratio, of which little is left
_DESCRIPTION = 2**16  # bytes of a file's names, shapes and policy, at most
_ON_CARD = ("evaluation", "tasks", "speed")
_OWN = (
    *("paths", "hydra", "trainer", "search", "ratio", "ratios", "out", "policy", "path"),
    *("sequential", "dtype", "push_to_hub", "push_to_hub_dry_run"),
)


def check(cfg: DictConfig) -> None:
    """Refuses settings that a later step would refuse after hours, and a size out of reach."""
    unfit = cfg.target and cfg.budget.name != "params"
    if cfg.mode != "static" or unfit or (cfg.recover and cfg.budget.name == "bytes"):
        raise PPFError(
            "compress.py makes one model: leave mode=static, with target= also budget=params, and"
            " with budget=bytes give recover=false."
        )
    check_out(cfg.out, {"config": {"model": cfg.model}})
    check_upload(cfg)
    lm, exporter = _compensated_skeleton(cfg), instantiate(cfg.export)
    exporter.check(whole(lm))
    if cfg.target:
        cfg.ratio = ratio_of(cfg, lm, exporter)


def _compensated_skeleton(cfg: DictConfig) -> LanguageModel:
    """The dense model without its weights, with the biases that the compensation may add."""
    _, tokenizer = load_description(cfg.model, cfg.paths.cache)
    model, adapter = skeleton(cfg.model)
    lm, biases = LanguageModel(model, tokenizer, adapter), instantiate(cfg.compensation).biases
    for consumer in (coupling.consumer for coupling in lm.couplings):
        if biases and consumer.bias is None:
            bias = nn.Parameter(torch.empty(consumer.out_features, device="meta"))
            consumer.register_parameter("bias", bias)
    return lm


def main(cfg: DictConfig, fabric: Fabric) -> Outcome:
    """Writes the smaller model to `cfg.out`, and a report of all steps into the run's folder."""
    run, exporter = Path(cfg.paths.run), instantiate(cfg.export)
    whole = f" ({cfg.budget.name}) of what space={cfg.space.name} may remove"
    say(f"A policy at {percent(cfg.ratio)}{whole} is searched.")
    _step(cfg, fabric, "search", ratio=cfg.ratio)
    made = {"dense": _dense_folder(cfg), "pruned": str(run / "pruned")}
    type = exporter.type if isinstance(exporter, GGUF) else None
    # Weights that the policy has quantised would otherwise be rounded again, to other numbers.
    dtype = "float32" if type and cfg.budget.name == "bytes" else cfg.dtype
    start = run / "search" / "policy.json"
    given: dict[str, Any] = {"policy": start, "out": made["pruned"], "dtype": dtype}
    _step(cfg, fabric, "prune", **given, export="huggingface")
    if cfg.recover:
        made["recovered"] = str(run / "recovered")
        given = {"path": made["pruned"], "out": made["recovered"], "dtype": dtype}
        _step(cfg, fabric, "recover", **given)
        (row,) = json.loads((run / "recover" / "summary.json").read_bytes())["results"]
        if row["recovered"] >= row["pruned"]:  # on the validation part
            say("Training raised the perplexity, so the pruned model is exported without it.")
            made["pruned"] = made.pop("pruned")  # the exported model is the last one
    _step(cfg, fabric, "prune", path=[*made.values()][-1], out=cfg.out, dtype=dtype)
    given = {"path": [*made.values()], "names": [*made], "dtype": "auto", "round_to": type}
    outcome = _step(cfg, fabric, "evaluate", run, **given)
    _add_to_card(Path(cfg.out, "README.md"), run / "evaluation.json")
    upload(cfg)
    return outcome


def _add_to_card(card: Path, evaluation: Path) -> None:
    """Adds the comparison of the models to the model card."""
    found = page(json.loads(evaluation.read_text(encoding="utf-8")))
    tables = {s.note: s.table.markdown for s in found.sections if s.table and s.name in _ON_CARD}
    parts = ["", "## Compared with the dense model", found.headline, *sum(tables.items(), ())]
    with card.open("a", encoding="utf-8") as file:
        file.write("\n\n".join(parts) + "\n")


def ratio_of(cfg: DictConfig, lm: LanguageModel, exporter: Exporter) -> float:
    """The pruning ratio with which the exported file is as large as `cfg.target`.

    Args:
        lm: without weights, with the biases that the compensation may add.

    Raises:
        PPFError: the size cannot be reached, or is none.
    """
    target = 0
    with suppress(ValueError):  # what is no size cannot be reached
        target = convert_file_size_to_int(cfg.target)
    model: Any = lm.model
    model.to(resolve_dtype(cfg.dtype))
    space = instantiate(cfg.space, [coupling.prunable for coupling in lm.couplings])
    size = exporter.bytes(model, lm.tokenizer)
    prunable = space.total * exporter.bytes_per_weight(model)
    ratio = (size + _DESCRIPTION - target) / prunable
    if not 0 < ratio <= _HIGHEST:
        least = size - _HIGHEST * prunable
        raise PPFError(
            f"target={cfg.target} cannot be reached: in this format the dense model has"
            f" {mebibytes(size)}, and {percent(_HIGHEST)} of what space={cfg.space.name} may"
            f" remove leave {mebibytes(round(least))}: give a size between them, as in"
            " target=600MiB."
        )
    return ratio


def _step(
    cfg: DictConfig, fabric: Fabric, command: str, folder: Path | None = None, **own: object
) -> Outcome:
    """Runs a command with the settings that its config shares with `cfg`.

    Args:
        folder: of its run.
        own: further settings.
    """
    say(f"\n{command}")
    export = own.pop("export", None)
    with without_others(), initialize_config_module("ppf.conf", version_base="1.3"):
        step = compose(command, [f"export={export}"] if export else [])
    OmegaConf.set_struct(step, False)
    for key in step:
        if key in cfg and key not in _OWN and not (key == "export" and export):
            step[key] = cfg[key]
    if command == "search":
        step.search, step.trainer = cfg.search, cfg.trainer
    step.paths = {**cfg.paths, "run": str(folder or Path(cfg.paths.run) / command)}
    for key, value in own.items():
        step[key] = str(value) if isinstance(value, Path) else value
    stage = importlib.import_module(f"ppf.stages.{command}")
    if hasattr(stage, "check"):
        stage.check(step)
    Path(step.paths.run).mkdir(parents=True, exist_ok=True)
    outcome: Outcome | None = stage.main(step, fabric)
    gc.collect()  # models refer to themselves, and the next step loads its own
    return outcome or Outcome()


def _dense_folder(cfg: DictConfig) -> str:
    """The folder of the dense model."""
    source = checkpoint_of(cfg.model, cfg.paths.cache)
    if Path(source).is_dir():
        return source
    return str(small_file(source, "config.json", cfg.model.source.get("revision")).parent)
