"""What an ensemble leaves over: interactions between sites, by kernel ridge regression."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn


class KernelRidge(nn.Module):
    """A smooth function of the policy for each member, fitted to what that member leaves over.

    A policy's coordinates are its effects: what each of its cuts alone is predicted to cost. The
    kernel is Gaussian in them, so that the correction fades away from measured policies, and goes
    through them where they are dense. Length and ridge are those of the lists that predict best
    what members have not seen; where none helps, nothing is corrected.

    Args:
        lengths: of the kernel, relative to the median distance between policies.
        ridges: variances of the noise, relative to that of the function.
        huber: transformed error from which on a row counts less, as 1 / error.

    Source of the method: regression kriging, with the folds of CV+ (arXiv 1905.02928).
    """

    effects: Float[Tensor, "sites levels"]
    points: Float[Tensor, "rows sites"]
    coefficients: Float[Tensor, "members rows"]
    length: Float[Tensor, ""]

    def __init__(self, *, lengths: Sequence[float], ridges: Sequence[float], huber: float) -> None:
        super().__init__()
        self.lengths, self.ridges, self.huber = lengths, ridges, huber
        for name in _STATE:
            self.register_buffer(name, torch.empty(0))

    @property
    def fitted(self) -> bool:
        return self.coefficients.numel() > 0

    def forward(self, kept: Shaped[Tensor, "batch sites"]) -> Float[Tensor, "members batch"]:
        """What to add to each member's answer; widths may lie between whole units."""
        return self.coefficients @ self._kernel(self._coordinates(kept), self.length).T

    def fit(
        self,
        effects: Float[Tensor, "sites levels"],
        kept: Int[Tensor, "rows sites"],
        left: Float[Tensor, "members rows"],
        weights: Float[Tensor, "members rows"],
    ) -> None:
        """Fits all members at once.

        Args:
            effects: predicted cost of keeping k units at a site and all elsewhere, [site, k].
            left: target minus answer.
            weights: of the rows; zero where the member must not see the row.
        """
        self.effects = effects
        self.points = self._coordinates(kept)
        unit = torch.pdist(self.points).median().clamp(min=_SMALLEST)
        root = (weights * self.huber / left.abs().clamp(min=self.huber)).sqrt()
        unseen = weights == 0
        self.coefficients, least = torch.zeros_like(left), self._error(left, unseen)
        self.length = unit
        for length, ridge in product(self.lengths, self.ridges):
            kernel = self._kernel(self.points, length * unit)
            coefficients = _solve(kernel, root, left, ridge)
            error = self._error(left - coefficients @ kernel, unseen)
            if error < least:
                self.coefficients, self.length, least = coefficients, length * unit, error

    def _coordinates(self, kept: Tensor) -> Float[Tensor, "batch sites"]:
        below = kept.T.long()
        coordinates = self.effects.gather(1, below)
        if kept.is_floating_point():
            above = self.effects.gather(1, (below + 1).clamp(max=self.effects.shape[1] - 1))
            coordinates = coordinates + (kept.T - below).to(above) * (above - coordinates)
        return coordinates.T

    def _kernel(self, coordinates: Tensor, length: Tensor) -> Float[Tensor, "batch rows"]:
        return torch.exp(-torch.cdist(coordinates, self.points).square() / (2 * length**2))

    def _error(self, left: Tensor, unseen: Tensor) -> Float[Tensor, ""]:
        return F.huber_loss(left[unseen], torch.zeros_like(left[unseen]), delta=self.huber)

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        """Takes the number of rows from the checkpoint."""
        for name in _STATE:
            setattr(self, name, torch.empty_like(state[prefix + name]))
        super()._load_from_state_dict(state, prefix, *rest)


def _solve(
    kernel: Float[Tensor, "rows rows"],
    root: Float[Tensor, "members rows"],
    left: Float[Tensor, "members rows"],
    ridge: float,
) -> Float[Tensor, "members rows"]:
    """Coefficients a with (K + ridge / w) a = left, zero where the weight w = root² is zero."""
    system = root[:, :, None] * kernel * root[:, None] + ridge * torch.eye(len(kernel)).to(kernel)
    factor = torch.linalg.cholesky(system)
    return root * torch.cholesky_solve((root * left)[..., None], factor)[..., 0]


_SMALLEST = 1e-6  # distance between policies
_STATE = ("effects", "points", "coefficients", "length")
