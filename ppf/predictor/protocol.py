"""What a search needs of a predictor."""

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float, Int
from torch import Tensor


class Prediction(NamedTuple):
    """Predicted log-perplexity (nats per token) and its standard deviation, per policy."""

    mean: Float[Tensor, " batch"]
    std: Float[Tensor, " batch"]


@runtime_checkable
class Predictor(Protocol):
    """Answers for batches of policies, on the device of `kept`, without a host round trip."""

    def predict(self, kept: Int[Tensor, "batch sites"]) -> Prediction: ...


@runtime_checkable
class Differentiable(Predictor, Protocol):
    """A predictor that answers between whole units too."""

    def relaxed(self, kept: Float[Tensor, "batch sites"]) -> Float[Tensor, " batch"]:
        """Log-perplexity, nats per token, differentiable in `kept`."""
