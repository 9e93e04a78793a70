"""Multilayer perceptron over all features of a policy."""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from ppf.predictor.encoders import Encoder
from ppf.predictor.network import Network
from ppf.ranges import Count


class MLP(Network):
    """Fully connected layers over the flattened difference from the dense policy's features.

    Args:
        hidden: widths of the hidden layers.
    """

    dense: Float[Tensor, "..."]

    def __init__(self, encoder: Encoder, *, hidden: Sequence[Count]) -> None:
        super().__init__()
        self.register_buffer("dense", encoder.dense)
        widths = [self.dense.numel(), *hidden]
        layers: list[nn.Module] = []
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(inputs, outputs), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, features: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
        return self.body((features - self.dense).flatten(1)).squeeze(-1)
