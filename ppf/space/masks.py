"""Policies as the mask matrices that the paper's predictor reads."""

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ppf.space.sites import Space


def masks(
    space: Space, kept: Int[Tensor, "batch sites"]
) -> dict[str, Bool[Tensor, "batch layers units"]]:
    """Per kind, which units stay; columns are units from most to least important."""
    return {kind: _mask(space, kept, kind) for kind in space.kinds}


def _mask(space: Space, kept: Tensor, kind: str) -> Tensor:
    index = [i for i, site in enumerate(space.sites) if site.kind == kind]
    layers = torch.tensor([space.sites[i].layer for i in index], device=kept.device)
    width = max(space.sites[i].units for i in index)
    counts = kept.new_zeros(kept.shape[0], space.layers)
    counts[:, layers] = kept[:, index]
    return torch.arange(width, device=kept.device) < counts[..., None]
