"""train: the predictor, fitted to labelled policies or found by its signature."""

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from ppf.artefacts import get_or_make, signature
from ppf.labels.table import Labels
from ppf.predictor.encoders import Facts
from ppf.predictor.fit import FILE, Fitted, HeldOut, fit_predictor
from ppf.predictor.module import load_predictor
from ppf.progress import console, say
from ppf.stages.prepare import PruningContext
from ppf.stages.signatures import file_digest, plain, require

_RECORD = "held_out.json"
_MACHINE = ("accelerator", "devices", "num_nodes", "strategy")  # where, not what, is trained


@dataclass(frozen=True)
class Trained:
    """A predictor and where it lies."""

    fitted: Fitted
    folder: Path
    signature: str


def train(context: PruningContext, labels: Labels, *, upstream: bool = False) -> Trained:
    """The predictor of the config and these labels; rank 0 trains it if it lacks.

    Other ranks wait: the networks are small and see all labels at once, and the Gaussian process
    is fitted in closed form, so that several devices would gain nothing.

    Args:
        labels: the dense policy's first.
        upstream: called by a later stage, which `upstream=require` forbids to train.
    """
    cfg, fabric = context.cfg, context.fabric
    name = predictor_signature(cfg, context.signatures.labels, labels)
    folder = Path(cfg.paths.artefacts) / "predictor" / name
    facts, reused = _facts(context), True  # all ranks make the facts together

    def make(draft: Path) -> None:
        nonlocal reused
        reused = False
        if upstream:
            require(cfg, "predictor", "python train.py")
        say(f"Training the predictor on {len(labels)} labels.")
        _fit(context, labels, facts, draft)

    read = partial(_load, config=plain(cfg.predictor))
    fitted = get_or_make(folder, read=read, make=make, ranks=fabric)
    if reused:
        say(f"Reusing the predictor in {folder}.")
    fitted.predictor.to(fabric.device)
    return Trained(fitted, folder, name)


def _fit(context: PruningContext, labels: Labels, facts: Facts, folder: Path) -> None:
    cfg = context.cfg
    fitted = fit_predictor(
        labels,
        context.space,
        facts,
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
    (folder / _RECORD).write_text(json.dumps(record), encoding="utf-8")


def _facts(context: PruningContext) -> Facts:
    features = context.features
    return Facts(features.errors, features.retained, features.energy, features.losses)


def _load(folder: Path, config: dict[str, Any]) -> Fitted:
    record: dict[str, Any] = json.loads((folder / _RECORD).read_text(encoding="utf-8"))
    held_out = HeldOut(
        **{name: torch.tensor(column) for name, column in record["held_out"].items()}
    )
    return Fitted(load_predictor(folder / FILE, config), record["metrics"], held_out)


def predictor_signature(cfg: DictConfig, label_name: str, labels: Labels) -> str:
    """Hashes what determines a predictor.

    Args:
        label_name: signature of the labels' store.
    """
    predictor = plain(cfg.predictor)
    if predictor["init_from"]:
        predictor["init_from"] = file_digest(cfg, "predictor.init_from")
    policies = (labels.kept.tolist(), labels.proposed.tolist(), labels.acquired.tolist())
    trainer = {key: value for key, value in plain(cfg.trainer).items() if key not in _MACHINE}
    return signature("predictor", label_name, policies, predictor, trainer, cfg.seed)
