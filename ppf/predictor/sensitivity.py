"""A predictor without labels: the sum of the expected losses of all cuts."""

from typing import ClassVar

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from ppf.labels.table import Labels
from ppf.predictor.base import PredictorInputs
from ppf.predictor.policy_features import at_widths
from ppf.predictor.protocol import Prediction


class SensitivityPredictor:
    """Log-perplexity of the dense model plus Σ_s L_s(k_s).

    L_s(k) is the expected loss of keeping k units at site s and all units elsewhere
    (`ppf.pruning.sensitivity`). Interactions between sites are not modelled.
    """

    needs_labels: ClassVar[bool] = False

    def fit(self, labels: Labels, inputs: PredictorInputs) -> None:
        self._losses, self._dense_nll = inputs.features.losses, inputs.dense_nll

    def predict(self, kept: Int[Tensor, "batch sites"]) -> Prediction:
        mean = self.relaxed(kept)
        return Prediction(mean, torch.zeros_like(mean))

    def relaxed(self, kept: Shaped[Tensor, "batch sites"]) -> Float[Tensor, " batch"]:
        """Log-perplexity between whole units, nats per token, linear between them."""
        return self._dense_nll + at_widths(self._losses.to(kept.device), kept).sum(1)
