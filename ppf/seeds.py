"""Random generators of numbered draws."""

import torch

_DISTANCE = 1_000_003  # between the first draws of two seeds; nothing draws as often with one seed


def numbered(seed: int, number: int) -> torch.Generator:
    """A generator that differs between draws and between seeds."""
    return torch.Generator().manual_seed(seed * _DISTANCE + number)
