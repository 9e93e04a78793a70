"""train: the predictor, fitted to labelled policies or found by its signature."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from lightning import Fabric
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from ppf.labels.table import Labels
from ppf.predictor.encoders import Facts
from ppf.predictor.fit import FILE, Fitted, HeldOut, fit_predictor
from ppf.predictor.module import FORMAT, load_predictor
from ppf.progress import console, say
from ppf.stages.artefacts import plain, require, signature
from ppf.stages.prepare import PruningContext

_RECORD = "held_out.json"


@dataclass(frozen=True)
class Trained:
    """A predictor and where it lies."""

    fitted: Fitted
    folder: Path
    signature: str


def train(context: PruningContext, labels: Labels, *, upstream: bool = False) -> Trained:
    """The predictor of the config and these labels; the first rank trains it if it lacks.

    Args:
        labels: the dense policy's first.
        upstream: called by a later stage, which `upstream=require` forbids to train.
    """
    cfg, fabric = context.cfg, context.fabric
    name = _signature(context, labels)
    folder = Path(cfg.paths.artefacts) / "predictor" / name
    if (folder / _RECORD).is_file():
        say(f"Reusing the predictor in {folder}.")
    else:
        if upstream:
            require(cfg, "predictor", "python train.py")
        say(f"Training the predictor on {len(labels)} labels.")
        if fabric.is_global_zero:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "training.lock"):
                if not (folder / _RECORD).is_file():  # by another process, meanwhile
                    _fit(cfg, context, labels, folder)
        fabric.barrier()
    return Trained(_load(folder, fabric), folder, name)


def _fit(cfg: DictConfig, context: PruningContext, labels: Labels, folder: Path) -> None:
    fitted = fit_predictor(
        labels,
        context.space,
        _facts(context),
        float(labels.nll[0]),
        predictor=plain(cfg.predictor),
        trainer=plain(cfg.trainer),
        seed=cfg.seed,
        folder=folder,
        loggers=[logger for logger in context.fabric.loggers if isinstance(logger, Logger)],
        progress=console.is_terminal,
    )
    columns = {name: values.tolist() for name, values in fitted.held_out._asdict().items()}
    record = {"metrics": fitted.metrics, "held_out": columns}
    draft = folder / f"{_RECORD}.draft"
    draft.write_text(json.dumps(record), encoding="utf-8")
    draft.replace(folder / _RECORD)


def _facts(context: PruningContext) -> Facts:
    """What predictors are told of the space's sites."""
    evidence = context.evidence
    energy = torch.stack([evidence.traits.energy[site.name] for site in context.space.sites])
    return Facts(evidence.errors, evidence.retained, energy, context.sensitivity)


def _load(folder: Path, fabric: Fabric) -> Fitted:
    record: dict[str, Any] = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    held_out = HeldOut(
        **{name: torch.tensor(column) for name, column in record["held_out"].items()}
    )
    predictor = load_predictor(folder / FILE).to(fabric.device)
    return Fitted(predictor, record["metrics"], held_out)


def _signature(context: PruningContext, labels: Labels) -> str:
    cfg, predictor = context.cfg, plain(context.cfg.predictor)
    if predictor["init_from"]:  # counts by its content
        state = load_predictor(predictor["init_from"]).state_dict()
        predictor["init_from"] = [value.tolist() for value in state.values()]
    policies = signature(labels.kept.tolist(), labels.proposed.tolist(), labels.acquired.tolist())
    made_of = (context.signatures.labels, policies, predictor, plain(cfg.trainer), cfg.seed)
    return signature(FORMAT, *made_of)
