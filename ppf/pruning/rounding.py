"""Quantisation: rounds weights to the block formats of GGUF files."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ppf.records.values import NumberFormat

BLOCK = 32
"""Weights of a row that share a scale."""
BLOCK_BYTES: dict[NumberFormat, int] = {"f16": 64, "q8_0": 34, "q5_0": 22, "q4_0": 18}
"""Bytes of 32 weights and their scale."""


def rounded(
    weight: Float[Tensor, "rows columns"], type: NumberFormat
) -> Float[Tensor, "rows columns"]:
    """The weight after it is written to a GGUF file and read again.

    Every weight is rounded to the nearest multiple of its block's scale.

    Rows that do not divide into blocks are written in 16 bits.

    Source: `gguf.quants`, which follows llama.cpp's reference code; a test compares both.
    """
    if type == "f16" or weight.shape[1] % BLOCK:
        return weight.half().to(weight)
    blocks = weight.float().unflatten(1, (-1, BLOCK))
    return _ROUNDING[type](blocks).flatten(1).to(weight)


def _q8_0(blocks: Tensor) -> Tensor:
    """Whole numbers from −127 to 127 times the scale."""
    scale = blocks.abs().amax(-1, keepdim=True) / 127
    multiples = blocks * _inverse(scale)
    size = multiples.abs()
    whole = size.floor()
    nearest = whole + (2 * (size - whole)).floor()  # halves are rounded away from zero
    return multiples.sign() * nearest * scale.half().float()


def _signed(blocks: Tensor, half: int) -> Tensor:
    """Whole numbers from −half to half − 1 times the scale; the largest weight is −half."""
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scale = largest / -half
    shifted = blocks * _inverse(scale) + (half + 0.5)
    whole = shifted.trunc().clamp(0, 2 * half - 1) - half
    return whole * scale.half().float()


def _inverse(scale: Tensor) -> Tensor:
    return torch.where(scale == 0, 0, 1 / scale)


_ROUNDING: dict[NumberFormat, Callable[[Tensor], Tensor]] = {
    "q8_0": _q8_0,
    "q5_0": lambda blocks: _signed(blocks, 16),
    "q4_0": lambda blocks: _signed(blocks, 8),
}
