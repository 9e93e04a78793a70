"""The interface of the networks that `LearnedPredictor` trains."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn


class Network(nn.Module, ABC):
    """Maps features of policies to one number each, which increases with the predicted loss.

    The number is asinh(excess / knee). Excess is the log-perplexity minus the dense model's, in
    nats per token. The number is about linear in the excess below the knee and logarithmic above,
    so that catastrophic policies stay in range. Only the difference from the dense policy's number
    is used.

    A network is constructed as `cls(encoder, **config)`. It reads the features of this encoder, of
    any shape. `config` holds the keys under `network:` in the predictor's YAML file.
    """

    @abstractmethod
    def forward(self, features: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]: ...
