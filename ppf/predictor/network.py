"""What every network of a predictor has in common."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn


class Network(nn.Module, ABC):
    """Features of policies to one number each, which rises with the predicted loss.

    The number is asinh(excess / knee), where excess is log-perplexity above the dense model's (nats
    per token): about linear below the knee and logarithmic above, so that catastrophic policies
    stay in range. It is only used relative to that of the dense policy.

    A network is made as `cls(encoder, **config)` from the encoder whose features it reads, of any
    shape.
    """

    @abstractmethod
    def forward(self, features: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]: ...
