"""Pareto fronts: points that no other point dominates."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def front(points: Float[Tensor, "n counts"]) -> Bool[Tensor, " n"]:
    """Whether each point is on the Pareto front; smaller values are better.

    Of several equal points only the first is on the front.
    """
    no_worse = (points[:, None] <= points).all(2)
    better = no_worse & (points[:, None] < points).any(2)
    earlier = torch.ones(len(points), len(points), dtype=torch.bool, device=points.device).triu(1)
    equal = no_worse & no_worse.T & earlier
    return ~(better | equal).any(0)
