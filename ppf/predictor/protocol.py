"""What a search needs of a predictor."""

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor


class Prediction(NamedTuple):
    """Predicted log-perplexity (nats per token) and its standard deviation, per policy."""

    mean: Float[Tensor, " batch"]
    std: Float[Tensor, " batch"]


@runtime_checkable
class Surrogate(Protocol):
    """Predicts batches of policies on the device of `kept`, without copies to the host."""

    def predict(self, kept: Int[Tensor, "batch sites"]) -> Prediction: ...


@runtime_checkable
class Differentiable(Surrogate, Protocol):
    """A surrogate that also predicts for fractional numbers of kept units."""

    def relaxed(self, kept: Float[Tensor, "batch sites"]) -> Float[Tensor, " batch"]:
        """Log-perplexity in nats per token, differentiable in `kept`."""
