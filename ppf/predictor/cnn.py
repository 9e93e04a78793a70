"""Convolutional predictor over the mask matrices."""

from collections.abc import Sequence

from jaxtyping import Float, Int
from torch import Tensor, nn

from ppf.predictor.encoders import Encoder
from ppf.predictor.network import Network
from ppf.ranges import Count


class CNN(Network):
    """Convolutions over depth, then one linear layer that reads every channel of every layer.

    The convolutions run over the layers of the model. The input channels are the features of a
    layer's rows, for all kinds. They are zero where the encoder has no row.

    Args:
        channels: output channels of the convolutions, in order.
        kernel: number of layers that a convolution reads, odd.

    Source: PPF (arXiv 2508.02381) reads masks with a CNN and does not publish its layers; these are
    ours.
    """

    dense: Float[Tensor, "..."]
    column: Int[Tensor, " rows"]

    def __init__(self, encoder: Encoder, *, channels: Sequence[Count], kernel: Count) -> None:
        super().__init__()
        depth, kinds = int(encoder.layers.max()) + 1, int(encoder.kinds.max()) + 1
        self.register_buffer("dense", encoder.dense)
        self.register_buffer("column", encoder.layers * kinds + encoder.kinds)
        self.grid = (depth, kinds)
        widths = [kinds * encoder.dense.shape[-1], *channels]
        convolutions: list[nn.Module] = []
        for inputs, outputs in zip(widths, widths[1:], strict=False):
            convolutions += [nn.Conv1d(inputs, outputs, kernel, padding="same"), nn.SiLU()]
        self.body = nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(widths[-1] * depth, 1))

    def forward(self, features: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
        rows = (features - self.dense).flatten(1, -2)
        depth, kinds = self.grid
        columns = rows.new_zeros(len(rows), depth * kinds, rows.shape[-1])
        columns = columns.index_copy(1, self.column, rows).unflatten(1, self.grid)
        return self.body(columns.flatten(2).transpose(1, 2)).squeeze(-1)
