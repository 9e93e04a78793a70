"""train: fits a predictor to labelled policies, or reads the stored one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from ppf.artefacts import missing, signature
from ppf.commands import invocation
from ppf.conf import plain
from ppf.digests import file_digest, with_code
from ppf.errors import PPFError
from ppf.labels.groups import too_few
from ppf.labels.labelling import Labelling
from ppf.labels.samplers import SamplingContext
from ppf.labels.table import Labels
from ppf.planning.evaluations import drawn_labels
from ppf.predictor.base import (
    Changes,
    Predictor,
    PredictorInputs,
    StoredPredictor,
    needs_labels,
    unfitted,
)
from ppf.predictor.fit import FIXED
from ppf.predictor.learned import LearnedPredictor
from ppf.predictor.module import load_predictor
from ppf.predictor.protocol import Prediction
from ppf.processes import trainer_identity
from ppf.progress import console, say
from ppf.pruning.prunable import PrunableModel


@dataclass(frozen=True)
class Trained:
    """A fitted predictor, with the folder and the signature of its artefact."""

    predictor: Predictor
    folder: Path
    signature: str


Train = Callable[[Labels], Trained]
"""Fits a predictor to labels: `train` whose other arguments are given."""


def _placed(trainer: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The Trainer's arguments with the GPU that the model is on, if it trains on one GPU."""
    if device.type != "cuda" or trainer["accelerator"] == "cpu" or trainer["devices"] != 1:
        return trainer
    return {**trainer, "accelerator": "cuda", "devices": [device.index or 0]}


def train(
    labelling: Labelling,
    sites: SamplingContext,
    changes: Changes | None,
    predictor: DictConfig,
    trainer: DictConfig,
    seed: int,
    loggers: Sequence[Any],
    labels: Labels,
    *,
    may_train: bool = True,
) -> Trained:
    """A predictor that is fitted to the labels.

    If it needs labels, rank 0 trains it once and stores it, and other ranks wait: networks and
    Gaussian process are too small to gain from several devices. Otherwise every rank fits it.

    Args:
        labelling: measures policies for predictors that ask for it.
        sites: of the space, with their features.
        changes: estimates changes of a policy's loss; None: the predictor gets no estimates.
        predictor: config of the predictor.
        trainer: arguments of Lightning's Trainer.
        seed: of splits and initial weights.
        loggers: Fabric's; those that are also loggers of Lightning get the training's metrics.
        labels: measured policies, the dense one first.

    Raises:
        PPFError: the predictor is missing, and `may_train` is false.
    """
    artefacts, of_labels, found = labelling.artefacts, labelling.name, unfitted(predictor)
    name = predictor_signature(of_labels, labels, predictor, trainer, seed, artefacts.folder)
    inputs = PredictorInputs(
        sites.features,  # all ranks compute them together
        float(labels.nll[0]),
        lambda kept: labelling.measure(kept, "oracle").nll,
        labelling.screen,
        _placed(plain(trainer), labelling.model.lm.device),
        seed,
        None if needs_labels(found) else changes,  # which all ranks compute together
        [logger for logger in loggers if isinstance(logger, Logger)],
        console.is_terminal,
    )
    folder, reused = artefacts.folder / "predictor" / name, True

    def make(draft: Path) -> None:
        nonlocal reused
        reused = False
        if not may_train:
            raise missing("predictor", invocation("train"))
        say(f"Training the predictor on {len(labels)} labels.")
        fresh: StoredPredictor = instantiate(predictor)
        fresh.fit(labels, inputs)
        draft.mkdir()
        fresh.save(draft)

    def read(path: Path) -> StoredPredictor:
        stored: StoredPredictor = instantiate(predictor)
        stored.load(path, inputs)
        return stored

    if needs_labels(found):
        found = artefacts.get_or_make("predictor", name, read=read, make=make)
        if reused:
            say(f"Reusing the predictor in {folder}.")
    else:
        found.fit(labels, inputs)
    if move := getattr(found, "to", None):
        move(labelling.model.lm.device)
    _check_predictions(found, labelling.model)
    return Trained(found, folder, name)


def check_trainer(trainer: DictConfig) -> None:
    """Raises PPFError if the config sets arguments of the Trainer that are not the user's."""
    if fixed := [key for key in trainer if key in FIXED]:
        raise PPFError(f"trainer.{fixed[0]} cannot be set, because train sets it: leave it out.")
    if trainer.get("limit_val_batches") == 0:
        raise PPFError(
            "trainer.limit_val_batches=0 leaves out the validation, which ends the training:"
            " leave it out."
        )


def check_members(cfg: DictConfig) -> None:
    """Raises PPFError if there are fewer labels than folds, one for each member of an ensemble."""
    members, count = folds(cfg.predictor), drawn_labels(cfg)
    if count < members:
        raise too_few(count, count, members)


def folds(predictor: DictConfig) -> int:
    """Number of folds that the labels of a predictor are split into; 0: it learns from none."""
    return predictor.get("members", 0) if needs_labels(unfitted(predictor)) else 0


def _check_predictions(predictor: Predictor, model: PrunableModel) -> None:
    """Predicts the dense policy twice; otherwise a search would fail later, inside an agent.

    Raises:
        PPFError: the result is not a `Prediction`, or its tensors have wrong shapes.
    """
    found = predictor.predict(model.space.dense.repeat(2, 1).to(model.lm.device))
    returned = type(found).__name__
    if isinstance(found, Prediction):
        shapes = [list(torch.as_tensor(values).shape) for values in found]
        if shapes == [[2], [2]]:
            return
        returned = f"tensors of shapes {shapes[0]} and {shapes[1]}"
    raise PPFError(
        f"{type(predictor).__name__}.predict gives {returned} for 2 policies: it must give a"
        " Prediction of two tensors of shape [2]."
    )


def predictor_signature(
    label_signature: str,
    labels: Labels,
    predictor: DictConfig,
    trainer: DictConfig,
    seed: int,
    cache: Path,
) -> str:
    """Hashes what determines a predictor.

    Args:
        label_signature: of the labels' store.
        cache: folder that remembers digests of files.
    """
    config = with_code(plain(predictor), cache)
    policies = (labels.kept.tolist(), labels.proposed.tolist())
    training = trainer_identity(trainer)
    return signature("predictor", label_signature, policies, config, training, seed)
