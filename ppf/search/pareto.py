"""Pareto fronts: policies that no other one beats on every count."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def front(points: Float[Tensor, "n counts"]) -> Bool[Tensor, " n"]:
    """Which points are on the front, less being better on every count; of equal ones, the first."""
    no_worse = (points[:, None] <= points).all(2)
    better = no_worse & (points[:, None] < points).any(2)
    earlier = torch.ones(len(points), len(points), dtype=torch.bool, device=points.device).triu(1)
    equal = no_worse & no_worse.T & earlier
    return ~(better | equal).any(0)
