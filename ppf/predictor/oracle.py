"""The real model in place of a predictor: the baseline of a search."""

from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from ppf.labels.table import Labels
from ppf.predictor.base import Predictor, PredictorInputs
from ppf.predictor.protocol import Prediction


class Oracle(Predictor):
    """Measures every policy on the real model; known policies are not measured again."""

    needs_labels: ClassVar[bool] = False
    _measure: Callable[[Tensor], Tensor]

    def fit(self, labels: Labels, inputs: PredictorInputs) -> None:
        self._measure = inputs.measure

    def predict(self, kept: Int[Tensor, "batch sites"]) -> Prediction:
        mean = self._measure(kept).to(kept.device).float()
        return Prediction(mean, torch.zeros_like(mean))

    def save(self, folder: Path) -> None:
        """Writes nothing: the labels are artefacts of their own."""

    def load(self, folder: Path, inputs: PredictorInputs) -> None:
        raise NotImplementedError("a predictor without labels is fitted anew")
