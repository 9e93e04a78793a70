"""train: fits a predictor to labelled policies, or reads the stored one."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from ppf.artefacts import signature
from ppf.context.prepare import PruningContext
from ppf.context.signatures import file_digest, missing, plain, with_code
from ppf.errors import PPFError
from ppf.labels.table import Labels
from ppf.predictor.base import Predictor, PredictorInputs, StoredPredictor, needs_labels, unfitted
from ppf.predictor.protocol import Prediction
from ppf.progress import console, say
from ppf.stages.collect import measure, screen

_NO_EFFECT = (
    "accelerator",
    "devices",
    "num_nodes",
    "strategy",
    "log_every_n_steps",
    "num_sanity_val_steps",
)  # of the Trainer's arguments: they do not change what is trained


@dataclass(frozen=True)
class Trained:
    """A predictor, and where its artefact lies."""

    predictor: Predictor
    folder: Path
    signature: str


Train = Callable[[Labels], Trained]
"""Fits a predictor to labels: `train` whose other arguments are given."""


def train(
    context: PruningContext,
    predictor: DictConfig,
    trainer: DictConfig,
    seed: int,
    loggers: Sequence[Any],
    labels: Labels,
    *,
    may_train: bool = True,
    one_ratio: bool = False,
) -> Trained:
    """A predictor of the labels; rank 0 trains it if it is missing.

    Other ranks wait. Several devices would gain nothing: the networks are small and see all labels
    at once, and the Gaussian process is fitted in closed form.

    Args:
        predictor: config of the predictor.
        trainer: arguments of Lightning's Trainer.
        seed: of splits and initial weights.
        loggers: Fabric's; the training reports to those that Lightning's Trainer takes too.
        labels: measured policies, the dense one first.
        one_ratio: the search is for one ratio, so that its best policy may be differentiated.

    Raises:
        PPFError: the predictor is missing, and `may_train` is false.
    """
    artefacts, names = context.artefacts, context.signatures
    name = predictor_signature(names.labels, labels, predictor, trainer, seed, artefacts.folder)
    inputs = PredictorInputs(
        context.features,  # all ranks compute them together
        float(labels.nll[0]),
        lambda kept: measure(context, kept, "oracle").nll,
        partial(screen, context),
        plain(trainer),
        seed,
        context.changes if one_ratio else None,
        [logger for logger in loggers if isinstance(logger, Logger)],
        console.is_terminal,
    )
    folder, reused = artefacts.folder / "predictor" / name, True

    def make(draft: Path) -> None:
        nonlocal reused
        reused = False
        if not may_train:
            raise missing("predictor", "python train.py")
        say(f"Training the predictor on {len(labels)} labels.")
        fresh: StoredPredictor = instantiate(predictor)
        fresh.fit(labels, inputs)
        draft.mkdir()
        fresh.save(draft)

    def read(path: Path) -> StoredPredictor:
        stored: StoredPredictor = instantiate(predictor)
        stored.load(path, inputs)
        return stored

    found = unfitted(predictor)
    if needs_labels(found):
        found = artefacts.get_or_make("predictor", name, read=read, make=make)
        if reused:
            say(f"Reusing the predictor in {folder}.")
    else:
        found.fit(labels, inputs)
    if move := getattr(found, "to", None):
        move(context.lm.device)
    _check_predictions(found, context)
    return Trained(found, folder, name)


def _check_predictions(predictor: Predictor, context: PruningContext) -> None:
    """Predicts the dense policy twice; otherwise a search would fail later, inside an agent.

    Raises:
        PPFError: the result is not a `Prediction`, or its tensors have wrong shapes.
    """
    found = predictor.predict(context.space.dense.repeat(2, 1).to(context.lm.device))
    told = type(found).__name__
    if isinstance(found, Prediction):
        shapes = [list(torch.as_tensor(values).shape) for values in found]
        if shapes == [[2], [2]]:
            return
        told = f"tensors of shapes {shapes[0]} and {shapes[1]}"
    raise PPFError(
        f"{type(predictor).__name__}.predict gives {told} for 2 policies: it must give a Prediction"
        " of two tensors of shape [2]."
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
    config = plain(predictor)
    if file := config.get("init_from"):
        config["init_from"] = file_digest(file, "predictor.init_from", cache)
    config = with_code(config, cache)
    policies = (labels.kept.tolist(), labels.proposed.tolist(), labels.acquired.tolist())
    training = {key: value for key, value in plain(trainer).items() if key not in _NO_EFFECT}
    return signature("predictor", label_signature, policies, config, training, seed)
