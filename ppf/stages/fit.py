"""Fits a predictor to labelled policies, or reads the stored one."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from ppf.artefacts import missing, signature
from ppf.commands import invocation
from ppf.conf import plain
from ppf.digests import with_code
from ppf.labels.labelling import Labelling
from ppf.labels.samplers import SamplingContext
from ppf.labels.table import Labels
from ppf.predictor.base import (
    Changes,
    PredictorInputs,
    StoredPredictor,
    Trained,
    needs_labels,
    unfitted,
)
from ppf.processes import trainer_identity
from ppf.progress import console, say

Train = Callable[[Labels], Trained]
"""Fits a predictor to labels: `fitted` whose other arguments are given."""


def fitted(
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
    artefacts, found, device = labelling.artefacts, unfitted(predictor), labelling.model.lm.device
    name = predictor_signature(labelling.name, labels, predictor, trainer, seed, artefacts.folder)
    placed = plain(trainer)
    if device.type == "cuda" and placed["accelerator"] != "cpu":  # on the GPU that the model is on
        placed |= {"accelerator": "cuda", "devices": [device.index or 0]}
    inputs = PredictorInputs(
        sites.features,  # all ranks compute them together
        float(labels.nll[0]),
        lambda kept: labelling.measure(kept, "oracle").nll,
        labelling.screen,
        placed,
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
        move(device)
    return Trained(found, folder, name)


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
    policies = labels.kept.tolist(), labels.proposed.tolist()
    training = trainer_identity(trainer)
    return signature("predictor", label_signature, policies, config, training, seed)
