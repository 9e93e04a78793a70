"""Additive predictor: a monotone function of a weighted sum of the sites' features."""

import torch
import torch.nn.functional as F  # noqa: N812
from jaxtyping import Float, Int
from torch import Tensor, nn

from ppf.predictor.encoders import Encoder
from ppf.predictor.network import Network
from ppf.ranges import NonNegative


class Additive(Network):
    """Non-negative site weights on monotone features, then a non-negative mix of powers.

        z = Σ_rows Σ_features w[row, feature] · |x − x_dense| / Σ Σ |x_empty − x_dense|
        out = asinh(Σ_p a_p z^p)

    Removing more of a site never lowers the prediction, for any weights. The weights are
    log-normal. Their logarithm has a mean for each kind and feature. The deviation of a row from it
    is the sum of two parts: a Gaussian process over depth, which is smooth within a kind, and an
    independent part for each row. The logarithm's mean is linear in the logarithm of the rows'
    energies, with a slope that is learnt for each kind.
    All parameters are whitened, so the module's weight decay is their prior. If all of them are
    zero, all weights are equal.

    Args:
        smooth: standard deviation of the log-weights' smooth part.
    """

    dense: Float[Tensor, "..."]
    covariance_root: Float[Tensor, "rows rows"]
    whole: Float[Tensor, ""]
    kinds: Int[Tensor, " rows"]
    energy: Float[Tensor, " rows"]
    powers: Float[Tensor, " powers"]

    def __init__(self, encoder: Encoder, *, smooth: NonNegative) -> None:
        super().__init__()
        lost = (encoder.empty - encoder.dense).abs().flatten(0, -2)
        rows, features = len(encoder.kinds), int(lost.any(0).nonzero().max()) + 1
        same_kind = encoder.kinds[:, None] == encoder.kinds
        distance = (encoder.layers[:, None] - encoder.layers).abs()
        covariance = same_kind * smooth**2 * torch.exp(-distance / _LENGTH)
        root = torch.linalg.cholesky(covariance + (_ROUGH**2 + _JITTER) * torch.eye(rows))
        self.features = features  # those that come after them are constant
        self.register_buffer("dense", encoder.dense[..., :features])
        self.register_buffer("whole", lost.sum())
        self.register_buffer("kinds", encoder.kinds)
        self.register_buffer("energy", _standardised(encoder.energy, encoder.kinds))
        self.register_buffer("covariance_root", root)
        self.register_buffer("powers", torch.tensor(_POWERS))
        self.levels = nn.Parameter(torch.zeros(int(encoder.kinds.max()) + 1, features))
        self.slopes = nn.Parameter(torch.zeros(len(self.levels)))
        self.deviations = nn.Parameter(_SPREAD * torch.randn(rows))
        self.feature_deviations = nn.Parameter(_SPREAD * torch.randn(rows, features))
        self.link = nn.Parameter(torch.zeros(len(_POWERS)))

    @property
    def weights(self) -> Float[Tensor, "rows features"]:
        """The weight of each feature of each row."""
        whitened = self.deviations[:, None] + self.feature_deviations
        from_energy = self.slopes[self.kinds] * self.energy
        logs = self.levels[self.kinds] + from_energy[:, None] + self.covariance_root @ whitened
        return logs.clamp(max=_LARGEST).exp()

    def forward(self, features: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]:
        damage = (features[..., : self.features] - self.dense).abs().flatten(1)
        z = damage @ self.weights.flatten() / self.whole + _JITTER
        terms = F.softplus(self.link) * z[:, None] ** self.powers
        return torch.asinh(_SCALE * terms.sum(1))


def _standardised(
    energy: Float[Tensor, " rows"], kinds: Int[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """Logarithms with mean 0 and variance 1 over the rows of a kind whose energy is not 0."""
    logs = torch.zeros_like(energy)
    for kind in kinds.unique():
        here = (kinds == kind) & (energy > 0)
        values = energy[here].log()
        logs[here] = (values - values.mean()) / values.std(correction=0).clamp(min=_JITTER)
    return logs


_POWERS = (1.0, 2.0)  # exponents p of the link
_LENGTH = 4.0  # correlation length of the log-weights' smooth part, in layers
_ROUGH = 0.5  # standard deviation of the log-weights' part that is independent for each row
_SPREAD = 0.1  # that of the initial deviations, so that ensemble members differ
_JITTER = 1e-9  # keeps the root and the powers' gradients finite
_LARGEST = 10.0  # log-weight; keeps a line search that goes astray finite
_SCALE = 5.0  # brings the output near the targets before training
