"""A predictor without labels: the expected losses of all cuts, added up."""

from pathlib import Path
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppf.labels.table import Labels
from ppf.predictor.base import Predictor, PredictorInputs
from ppf.predictor.protocol import Prediction


class SensitivityPredictor(Predictor):
    """Log-perplexity of the dense model plus Σ_s L_s(k_s).

    L_s(k) is the expected loss of keeping k units at site s and all units elsewhere
    (`ppf.pruning.sensitivity`). Interactions between sites are not modelled.
    """

    needs_labels: ClassVar[bool] = False

    def fit(self, labels: Labels, inputs: PredictorInputs) -> None:
        self._losses, self._dense_nll = inputs.features.losses, inputs.dense_nll

    def predict(self, kept: Int[Tensor, "batch sites"]) -> Prediction:
        losses = self._losses.to(kept.device).T.gather(0, kept)
        mean = self._dense_nll + losses.sum(1)
        return Prediction(mean, torch.zeros_like(mean))

    def relaxed(self, kept: Float[Tensor, "batch sites"]) -> Float[Tensor, " batch"]:
        """Log-perplexity between whole units, nats per token, linear between them."""
        losses = self._losses.to(kept.device).T
        below = kept.detach().floor().long().clamp(0, len(losses) - 2)
        low, high = losses.gather(0, below), losses.gather(0, below + 1)
        return self._dense_nll + torch.lerp(low, high, (kept - below).to(low)).sum(1)

    def save(self, folder: Path) -> None:
        """Writes nothing: the losses are an artefact of their own."""

    def load(self, folder: Path, inputs: PredictorInputs) -> None:
        raise NotImplementedError("a predictor without labels is fitted anew")
