"""Windows of training text, in an order that depends only on the seed and the step."""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from ppf.seeds import numbered


class WindowSampler(Sampler[int]):
    """Which windows a device reads in an epoch of the trainer.

    The windows of step s are numbers s · batch to (s + 1) · batch of an endless sequence: random
    permutations of all windows, one after another. So a resumed run reads what the killed one
    would have read, also with other devices or micro-batches.

    Args:
        windows: number of windows in the text.
        size: windows in an epoch, over all devices.
        seed: of the permutations.
        rank: number of this device.
        ranks: number of devices.
    """

    def __init__(self, windows: int, size: int, *, seed: int, rank: int, ranks: int) -> None:
        self.windows, self.size, self.seed = windows, size, seed
        self.rank, self.ranks, self.epoch = rank, ranks, 0

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size // self.ranks

    def __iter__(self) -> Iterator[int]:
        start, drawn = self.epoch * self.size, -1
        for place in range(start + self.rank, start + self.size, self.ranks):
            if place // self.windows != drawn:
                drawn = place // self.windows
                generator = numbered(self.seed, drawn)
                permutation = torch.randperm(self.windows, generator=generator).tolist()
            yield permutation[place % self.windows]
