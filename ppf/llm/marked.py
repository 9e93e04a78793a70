"""Marked windows, in which ~t stands for a token t that is read but not scored.

All losses leave such tokens out. Windows are marked if `text.loss_on` is "assistant".
"""

import torch
from jaxtyping import Int
from torch import Tensor


def tokens_of(windows: Int[Tensor, "*shape"]) -> Int[Tensor, "*shape"]:
    """The tokens, as models read them."""
    return torch.where(windows < 0, ~windows, windows)


def scored_tokens(windows: Int[Tensor, "windows window"]) -> int:
    """How many tokens are scored; the first of a window never is."""
    return int((windows[:, 1:] >= 0).sum())
