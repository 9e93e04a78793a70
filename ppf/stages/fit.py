"""Fits a predictor to labelled policies, or reads the stored one."""

from collections.abc import Callable
from pathlib import Path

from hydra.utils import instantiate
from lightning import Fabric
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig

from ppf.artefacts import signature
from ppf.conf import plain
from ppf.digests import with_code
from ppf.labels.context import PruningContext
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
    cfg: DictConfig,
    fabric: Fabric,
    context: PruningContext,
    changes: Changes | None,
    labels: Labels,
) -> Trained:
    """A predictor that is fitted to the labels.

    If it needs labels, rank 0 trains it once and stores it, and other ranks wait: networks and
    Gaussian process are too small to gain from several devices. Otherwise every rank fits it.

    Args:
        cfg: with predictor, trainer and seed.
        fabric: those of its loggers that are also Lightning's get the training's metrics.
        changes: estimates changes of a policy's loss; None: the predictor gets no estimates.
        labels: measured policies, the dense one first.
    """
    labelling, artefacts, seed = context.labelling, context.labelling.artefacts, cfg.seed
    found, device, cache = unfitted(cfg.predictor), labelling.model.lm.device, artefacts.folder
    name = predictor_signature(cfg, labelling.name, labels, cache)
    placed = plain(cfg.trainer)
    if device.type == "cuda" and placed["accelerator"] != "cpu":  # on the GPU that the model is on
        placed |= {"accelerator": "cuda", "devices": [device.index or 0]}
    inputs = PredictorInputs(
        context.sites.features,  # all ranks compute them together
        float(labels.nll[0]),
        lambda kept: labelling.measure(kept, "oracle").nll,
        labelling.screen,
        placed,
        seed,
        None if needs_labels(found) else changes,  # which all ranks compute together
        [logger for logger in fabric.loggers if isinstance(logger, Logger)],
        console.is_terminal,
    )
    folder, reused = cache / "predictor" / name, True

    def make(draft: Path) -> None:
        nonlocal reused
        reused = False
        say(f"Training the predictor on {len(labels)} labels.")
        fresh: StoredPredictor = instantiate(cfg.predictor)
        fresh.fit(labels, inputs)
        draft.mkdir()
        fresh.save(draft)

    def read(path: Path) -> StoredPredictor:
        stored: StoredPredictor = instantiate(cfg.predictor)
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


def predictor_signature(cfg: DictConfig, store: str, labels: Labels, cache: Path) -> str:
    """Hashes what determines a predictor.

    Args:
        cfg: with predictor, trainer and seed.
        store: signature of the labels' store.
        cache: folder that remembers digests of files.
    """
    config, training = with_code(cfg.predictor, cache), trainer_identity(cfg.trainer)
    policies = labels.kept.tolist(), labels.proposed.tolist()
    return signature("predictor", store, policies, config, training, cfg.seed)
