"""Fitting a predictor to a labelled set: train, calibrate, score."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from ppf.labels.table import Labels
from ppf.predictor.base import PredictorInputs
from ppf.predictor.datamodule import LabelsDataModule
from ppf.predictor.module import PredictorModule, load_predictor
from ppf.predictor.scores import HeldOut, with_intervals
from ppf.progress import quiet_trainer, training_bar
from ppf.pruning import SiteFeatures
from ppf.threads import cpu_threads

CHECKPOINT = "predictor.ckpt"
_MONITOR = "validation/loss"
# Keys of the config that concern the fit; the others are arguments of the module.
_FITTING = ("data", "patience", "max_epochs", "threads", "init_from")


class Fitted(NamedTuple):
    """A trained predictor, its out-of-fold scores ("test/mae", …), and the scored rows."""

    predictor: PredictorModule
    metrics: dict[str, float]
    held_out: HeldOut


FIXED = (
    "logger",
    "callbacks",
    "enable_progress_bar",
    "enable_model_summary",
    "default_root_dir",
)
"""Arguments of the Trainer that `fit_predictor` sets."""


def fit_predictor(labels: Labels, inputs: PredictorInputs, predictor: Mapping[str, Any]) -> Fitted:
    """Trains a predictor, calibrates its interval, and scores its out-of-fold predictions.

    Only policies that a sampler drew are scored. Each is predicted by the member that was not
    trained on its fold, so the returned predictor, the mean of all members, is a little better.

    Args:
        labels: the labelled set; rows without a finite label are left out.
        inputs: what the predictor may use in addition to labels.
        predictor: the config of the predictor, as plain values. If its key `init_from` is the path
            of another predictor, all parameters start from its values.

    Raises:
        PPFError: there are too few labels.
    """
    space, seed = inputs.features.space, inputs.seed
    data = LabelsDataModule(
        labels, space, members=predictor["members"], seed=seed, **predictor["data"]
    )
    threads = cpu_threads(predictor["threads"])
    with quiet_trainer(), _determinism_restored(), threads, TemporaryDirectory() as folder:
        seed_everything(seed, verbose=False)
        module = untrained(inputs.features, inputs.dense_nll, predictor)
        if predictor["init_from"]:
            module.start_from(load_predictor(predictor["init_from"], predictor))
        best = ModelCheckpoint(
            folder, "best", _MONITOR, save_weights_only=True, enable_version_counter=False
        )
        callbacks: list[Callback] = [best, EarlyStopping(_MONITOR, patience=predictor["patience"])]
        if inputs.progress:
            callbacks.append(training_bar())
        engine = Trainer(
            **inputs.trainer,
            logger=list(inputs.loggers),
            callbacks=callbacks,
            enable_progress_bar=inputs.progress,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        engine.fit(module, data)
        if best.best_model_path:  # a fast_dev_run keeps none
            _restore(module, Path(best.best_model_path))
        rows = data.rows
        unseen = module.calibrate(rows, module.correct(rows))
    columns = (*unseen, rows.nll, rows.ratio, data.group)
    held_out = HeldOut(*(column.cpu()[data.drawn] for column in columns))
    found = with_intervals(held_out, predictor["bands"], inputs.dense_nll)
    metrics = {f"test/{name}": score for name, score in found.items()}
    for logger in inputs.loggers:
        logger.log_metrics(metrics)
        logger.save()
    return Fitted(module.cpu().eval(), metrics, held_out)


def untrained(
    features: SiteFeatures, dense_nll: float, predictor: Mapping[str, Any]
) -> PredictorModule:
    """The predictor of a config with its initial weights."""
    config = {key: value for key, value in predictor.items() if key not in _FITTING}
    return PredictorModule(
        space=features.space.describe(), features=features.plain(), dense_nll=dense_nll, **config
    )


def _restore(module: PredictorModule, checkpoint: Path) -> None:
    state = torch.load(checkpoint, map_location=module.device, weights_only=True)["state_dict"]
    module.load_state_dict(state)
    checkpoint.unlink()


@contextmanager
def _determinism_restored() -> Iterator[None]:
    """Undoes `trainer.deterministic`, which Lightning sets for the whole process.

    A search on a GPU uses operations that have no deterministic form there, such as cumsum.
    """
    before = torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
