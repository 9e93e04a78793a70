"""Which policies a predictor may choose to label."""

import pytest
import torch
from torch import Tensor

from ppf.errors import PPFError
from ppf.labels.table import Labels
from ppf.predictor.base import PredictorInputs
from ppf.predictor.protocol import Prediction
from ppf.stages.acquire import _chosen

POOL = torch.arange(12).view(6, 2)


class Known:
    """Predicts 0, 1, ... nats for the rows of `POOL`, and chooses the first ones."""

    def fit(self, labels: Labels, inputs: PredictorInputs) -> None: ...

    def predict(self, kept: Tensor) -> Prediction:
        return Prediction(kept[:, 0] / 2, torch.ones(len(kept)))

    def select(self, pool: Tensor, count: int) -> Tensor:
        return torch.arange(count)


def test_hopeless_policies_are_not_chosen() -> None:
    assert torch.equal(_chosen(Known(), POOL.flip(0), 2.5, 3), POOL[:3].flip(0))
    with pytest.raises(PPFError, match=r"acquired=4 is more than the 3 policies .* labels\.pool"):
        _chosen(Known(), POOL, 2.5, 4)
