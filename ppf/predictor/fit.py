"""Fitting a predictor to a labelled set: train, calibrate, test, save."""

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import Logger
from torch import Tensor

from ppf.labels.table import Labels
from ppf.predictor.datamodule import LabelsDataModule
from ppf.predictor.encoders import Facts
from ppf.predictor.module import PredictorModule, load_predictor
from ppf.space import Space
from ppf.threads import cpu_threads

FILE = "predictor.ckpt"
_MONITOR = "validation/loss"
# What the config says of the fit; the rest makes the module.
_FITTING = ("data", "patience", "max_epochs", "threads", "init_from")


class HeldOut(NamedTuple):
    """The test part: what was predicted, and what the model scored, in nats per token.

    Predicted before the predictor went by these rows too.
    """

    predicted: Float[Tensor, " rows"]
    std: Float[Tensor, " rows"]
    measured: Float[Tensor, " rows"]
    ratio: Float[Tensor, " rows"]


class Fitted(NamedTuple):
    """A trained predictor, its scores on the test part ("test/mae", …), and that part itself."""

    predictor: PredictorModule
    metrics: dict[str, float]
    held_out: HeldOut


def fit_predictor(
    labels: Labels,
    space: Space,
    facts: Facts,
    dense_nll: float,
    *,
    predictor: Mapping[str, Any],
    trainer: Mapping[str, Any],
    seed: int,
    folder: Path,
    loggers: Sequence[Logger],
    progress: bool,
) -> Fitted:
    """Trains a predictor, calibrates its interval, tests it and saves `folder/predictor.ckpt`.

    A Gaussian process goes by the test part too in the end, after its scores: they are not to be
    taken again from the predictor that is returned. With `predictor["init_from"]`, the path of
    another predictor, it starts from that one's parameters.

    Args:
        labels: the labelled set; rows without a finite label are left out.
        facts: of the space's sites.
        dense_nll: log-perplexity of the dense model on the labelling text, nats per token.
        predictor: the config group of that name, as plain values.
        trainer: the config group of that name, as plain values: arguments of Lightning's Trainer.
        seed: of the split and the initial weights.
        progress: show a progress bar.

    Raises:
        PPFError: there are too few labels.
    """
    data = LabelsDataModule(
        labels, space, members=predictor["members"], seed=seed, **predictor["data"]
    )
    with _quiet(), cpu_threads(predictor["threads"]):
        seed_everything(seed, verbose=False)
        module = untrained(space, facts, dense_nll, predictor)
        if predictor["init_from"]:
            module.start_from(load_predictor(predictor["init_from"], predictor))
        best = ModelCheckpoint(
            folder, "best", _MONITOR, save_weights_only=True, enable_version_counter=False
        )
        callbacks: list[Callback] = [best, EarlyStopping(_MONITOR, patience=predictor["patience"])]
        if progress:
            callbacks.append(RichProgressBar())
        engine = Trainer(
            **trainer,
            logger=list(loggers),
            callbacks=callbacks,
            enable_progress_bar=progress,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        engine.fit(module, data)
        if best.best_model_path:  # a fast_dev_run keeps none
            _restore(module, Path(best.best_model_path))
        unseen = module.correct(data.parts["train"])
        module.calibrate(data.parts["train"], unseen)
        (metrics,) = engine.test(module, data, verbose=False)
        test = data.parts["test"]
        held_out = HeldOut(*module.predict(test.kept), test.nll, test.ratio)
        module.condition(data.rows)
        engine.save_checkpoint(folder / FILE, weights_only=True)
    return Fitted(module.cpu().eval(), dict(metrics), held_out)


def untrained(
    space: Space,
    facts: Facts,
    dense_nll: float,
    predictor: Mapping[str, Any],
) -> PredictorModule:
    """The predictor of a config, with its initial weights; arguments as for `fit_predictor`."""
    config = {key: value for key, value in predictor.items() if key not in _FITTING}
    return PredictorModule(
        space=space.describe(), facts=facts.plain(), dense_nll=dense_nll, **config
    )


def _restore(module: PredictorModule, checkpoint: Path) -> None:
    state = torch.load(checkpoint, map_location=module.device, weights_only=True)["state_dict"]
    module.load_state_dict(state)
    checkpoint.unlink()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Lightning's remarks on devices, loaders and folders."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        try:
            yield
        finally:
            logger.setLevel(level)
