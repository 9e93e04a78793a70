"""Groups: policies that share their first layers."""

import torch
from jaxtyping import Int
from torch import Tensor

from ppf.space import Space

SHARED = 0.25
"""Share of the layers, the first ones, in which all policies of a group have equal widths."""
MOST = 8
"""Largest number of policies in a group; larger groups share their first layers by chance."""


def groups(space: Space, kept: Int[Tensor, "rows sites"]) -> Int[Tensor, " rows"]:
    """The number of each policy's group; equal policies are of one group.

    `SharedPrefix` draws groups, whose prediction errors are similar. Policies with equal widths
    in the first quarter of the layers form a group. There are two exceptions: policies that keep
    these layers whole, and groups of more than `MOST` policies. In a small space, such large groups
    share their first layers by chance.

    Args:
        space: the space of the policies.
        kept: the policies.
    """
    first = space.layer < SHARED * space.layers
    prefix = kept[:, first]
    policy, group = (torch.unique(rows, dim=0, return_inverse=True)[1] for rows in (kept, prefix))
    whole = (prefix == space.units[first]).all(1)
    crowded = group.bincount()[group] > MOST
    number = torch.where(whole | crowded, len(kept) + policy, group)
    return number.unique(return_inverse=True)[1]
