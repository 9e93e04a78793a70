"""Predictors that Lightning trains: an ensemble of networks, with or without a Gaussian process."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Unpack

import lightning
import torch
from jaxtyping import Float, Int
from pydantic import Field, with_config
from torch import Tensor
from typing_extensions import TypedDict

from ppf.labels.table import Labels
from ppf.predictor.base import PredictorInputs
from ppf.predictor.fit import CHECKPOINT, fit_predictor
from ppf.predictor.module import PredictorModule, load_predictor
from ppf.predictor.protocol import Prediction
from ppf.predictor.scores import HeldOut
from ppf.ranges import STRICT, Count, Edges, NonNegative, Positive, Several

_SCORES = "held_out.json"


@with_config(STRICT)
class Data(TypedDict):
    """How labels are split, weighted and batched; see `LabelsDataModule`."""

    strata: Count
    proposals: Positive
    low_loss: NonNegative
    batch_size: Count
    steps: Count


@with_config(STRICT)
class Residual(TypedDict):
    """Arguments of the Gaussian process on the ensemble's residuals."""

    effects: Annotated[list[NonNegative], Field(min_length=1)]
    shares: Annotated[list[NonNegative], Field(min_length=1)]
    rows: Count
    steps: Count


class Settings(TypedDict):
    """The keys of `conf/predictor/fit/default.yaml`, and the network's own."""

    encoder: dict[str, Any]
    network: dict[str, Any]
    optimizer: dict[str, Any]
    residual: Residual | None
    data: Data
    init_from: str | None
    members: Annotated[Several, Field(le=64)]
    max_epochs: Count
    patience: Count
    threads: Count
    weight_decay: NonNegative
    knee: Positive
    huber: Positive
    catastrophic: Positive
    bands: Edges


class LearnedPredictor:
    """An ensemble of networks over encoded policies, trained by Lightning."""

    def __init__(self, **config: Unpack[Settings]) -> None:
        self.config: Mapping[str, Any] = dict(config)
        self.module: PredictorModule

    def fit(self, labels: Labels, inputs: PredictorInputs) -> None:
        fitted = fit_predictor(labels, inputs, self.config)
        self.module, self.metrics, self.held_out = fitted

    def predict(self, kept: Int[Tensor, "batch sites"]) -> Prediction:
        return self.module.predict(kept)

    def relaxed(self, kept: Float[Tensor, "batch sites"]) -> Float[Tensor, " batch"]:
        """Log-perplexity between whole units, nats per token, differentiable in `kept`."""
        return self.module.relaxed(kept)

    def save(self, folder: Path) -> None:
        assert self.held_out is not None
        checkpoint = {
            "pytorch-lightning_version": lightning.__version__,
            "hyper_parameters": dict(self.module.hparams),
            "state_dict": self.module.state_dict(),
        }
        torch.save(checkpoint, folder / CHECKPOINT)
        columns = {name: values.tolist() for name, values in self.held_out._asdict().items()}
        scores = {"metrics": dict(self.metrics), "held_out": columns}
        (folder / _SCORES).write_text(json.dumps(scores), encoding="utf-8")

    def load(self, folder: Path, inputs: PredictorInputs) -> None:
        scores = json.loads((folder / _SCORES).read_text(encoding="utf-8"))
        columns = {name: torch.tensor(column) for name, column in scores["held_out"].items()}
        self.metrics, self.held_out = scores["metrics"], HeldOut(**columns)
        self.module = load_predictor(folder / CHECKPOINT, self.config)

    def to(self, device: torch.device) -> None:
        self.module.to(device)
