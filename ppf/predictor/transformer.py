"""Transformer over sites."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ppf.predictor.encoders import Encoder
from ppf.predictor.network import Network
from ppf.ranges import Count


class Transformer(Network):
    """Every row of the features is a token, with a learned position embedding.

    Args:
        width: width of a token.
        heads: number of attention heads.
        depth: number of blocks of attention and a two-layer perceptron, with pre-normalisation
            (arXiv 2002.04745).
    """

    dense: Float[Tensor, "..."]

    def __init__(self, encoder: Encoder, *, width: Count, heads: Count, depth: Count) -> None:
        super().__init__()
        self.register_buffer("dense", encoder.dense)
        self.features = nn.Linear(encoder.shape[-1], width)
        self.place = nn.Parameter(0.1 * torch.randn(len(encoder.kinds), width))
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(depth))
        self.answer = nn.Linear(width, 1)

    def forward(self, features: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
        tokens = self.features((features - self.dense).flatten(1, -2)) + self.place
        for block in self.blocks:
            tokens = block(tokens)
        return self.answer(tokens).sum((1, 2))


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        joined = heads * -(-width // heads)  # where heads do not divide the width: rounded up
        self.mix = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 3 * joined))
        self.back = nn.Linear(joined, width)
        self.each = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )

    def forward(
        self, tokens: Float[Tensor, "batch rows width"]
    ) -> Float[Tensor, "batch rows width"]:
        heads = self.mix(tokens).unflatten(-1, (3, self.heads, -1)).transpose(1, 3)
        query, key, value = heads.unbind(2)
        # Written out: torch has no fused attention for members evaluated side by side.
        attention = (query / key.shape[-1] ** 0.5 @ key.mT).softmax(-1)
        tokens = tokens + self.back((attention @ value).transpose(1, 2).flatten(2))
        return tokens + self.each(tokens)
