"""Ridge regression, the baseline of the other networks."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ppf.predictor.encoders import Encoder
from ppf.predictor.network import Network


class Ridge(Network):
    """One weight for each feature's difference from the dense policy; weight decay is the ridge."""

    dense: Float[Tensor, "..."]

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.register_buffer("dense", encoder.dense)
        self.weight = nn.Parameter(torch.zeros(self.dense.numel()))

    def forward(self, features: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
        return (features - self.dense).flatten(1) @ self.weight
