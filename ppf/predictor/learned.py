"""Predictors that Lightning trains: an ensemble of networks, with or without a Gaussian process."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jaxtyping import Float, Int
from lightning import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar
from torch import Tensor

from ppf.labels.table import Labels
from ppf.predictor.base import PredictorInputs
from ppf.predictor.datamodule import LabelsDataModule
from ppf.predictor.module import Design, PredictorModule
from ppf.predictor.protocol import Prediction
from ppf.predictor.scores import HeldOut, with_intervals
from ppf.progress import quiet_trainer
from ppf.ranges import Count
from ppf.threads import cpu_threads

CHECKPOINT = "predictor.ckpt"


@dataclass(kw_only=True)
class LearnedPredictor(Design):
    """An ensemble of networks over encoded policies, trained by Lightning.

    Further arguments are those of `Design`.

    Args:
        steps: optimizer steps of one epoch, each on all labels.
        patience: epochs without a better validation loss before training stops.

    Attributes:
        held_out: out-of-fold predictions of the policies that a sampler drew. Each is made by the
            member that was not trained on its fold, so the predictor itself, the mean of all
            members, is a little better.
        metrics: scores on them, as in "test/mae".
    """

    steps: Count
    patience: Count
    metrics: dict[str, float] = field(init=False)
    held_out: HeldOut = field(init=False)
    module: PredictorModule = field(init=False)

    def untrained(self, inputs: PredictorInputs) -> PredictorModule:
        """The module with random initial weights."""
        return PredictorModule(inputs.features, inputs.dense_nll, self)

    def fit(self, labels: Labels, inputs: PredictorInputs) -> None:
        """Trains, calibrates the intervals, and scores the out-of-fold predictions."""
        space, seed = inputs.features.space, inputs.seed
        data = LabelsDataModule(labels, space, members=self.members, steps=self.steps, seed=seed)
        threads = cpu_threads(1)  # the tensors are too small to gain from more
        with quiet_trainer(), _determinism_restored(), threads, TemporaryDirectory() as folder:
            seed_everything(seed, verbose=False)
            module = self.untrained(inputs)
            best = ModelCheckpoint(
                folder, "best", _MONITOR, save_weights_only=True, enable_version_counter=False
            )
            callbacks: list[Callback] = [best, EarlyStopping(_MONITOR, patience=self.patience)]
            if inputs.progress:
                callbacks.append(RichProgressBar())
            engine = Trainer(
                **_TRAINER | dict(inputs.trainer),
                logger=list(inputs.loggers),
                callbacks=callbacks,
                enable_progress_bar=inputs.progress,
                enable_model_summary=False,
                default_root_dir=folder,
            )
            engine.fit(module, data)
            if best.best_model_path:  # a fast_dev_run keeps none
                kept = torch.load(best.best_model_path, module.device, weights_only=True)
                module.load_state_dict(kept["state_dict"])
            rows = data.rows
            unseen = module.calibrate(rows, module.correct(rows))
        columns = (*unseen, rows.nll, rows.ratio, data.group)
        self.held_out = HeldOut(*(column.cpu()[data.drawn] for column in columns))
        found = with_intervals(self.held_out, inputs.dense_nll)
        self.metrics = {f"test/{name}": score for name, score in found.items()}
        for logger in inputs.loggers:
            logger.log_metrics(self.metrics)
            logger.save()
        self.module = module.cpu().eval()

    def predict(self, kept: Int[Tensor, "batch sites"]) -> Prediction:
        return self.module.predict(kept)

    def relaxed(self, kept: Float[Tensor, "batch sites"]) -> Float[Tensor, " batch"]:
        """Log-perplexity between whole units, nats per token, differentiable in `kept`."""
        return self.module.relaxed(kept)

    def save(self, folder: Path) -> None:
        torch.save(self.module.state_dict(), folder / CHECKPOINT)
        columns = {name: values.tolist() for name, values in self.held_out._asdict().items()}
        scores = {"metrics": self.metrics, "held_out": columns}
        (folder / _SCORES).write_text(json.dumps(scores), encoding="utf-8")

    def load(self, folder: Path, inputs: PredictorInputs) -> None:
        scores = json.loads((folder / _SCORES).read_text(encoding="utf-8"))
        columns = {name: torch.tensor(column) for name, column in scores["held_out"].items()}
        self.metrics, self.held_out = scores["metrics"], HeldOut(**columns)
        self.module = self.untrained(inputs).eval()
        self.module.load_state_dict(
            torch.load(folder / CHECKPOINT, map_location="cpu", weights_only=True)
        )

    def to(self, device: torch.device) -> None:
        self.module.to(device)


@contextmanager
def _determinism_restored() -> Iterator[None]:
    """Undoes what Lightning's `deterministic` sets for the whole process.

    A search on a GPU uses operations that have no deterministic form there, such as cumsum.
    """
    before = torch.are_deterministic_algorithms_enabled()
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


_MONITOR = "validation/loss"
_SCORES = "held_out.json"
_TRAINER: dict[str, Any] = {  # one device, since the networks are too small to gain from several
    "devices": 1,
    "deterministic": True,  # equal seeds give equal predictors
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
}
