"""Where a model can be pruned, and by how much: pure tensors that know no model."""

from ppf.space.budget import project, uniform
from ppf.space.masks import masks
from ppf.space.sites import Prunable, Site, Space, build_space, check_ratio, new_policies

__all__ = [
    "Prunable",
    "Site",
    "Space",
    "build_space",
    "check_ratio",
    "masks",
    "new_policies",
    "project",
    "uniform",
]
