"""The interface of the networks that `LearnedPredictor` trains."""

from abc import ABC, abstractmethod

from jaxtyping import Float
from torch import Tensor, nn


class Network(nn.Module, ABC):
    """Features of policies to one number each, which rises with the predicted loss.

    The number is asinh(excess / knee). Excess is the log-perplexity above the dense model's, in
    nats per token. The number is about linear in it below the knee and logarithmic above, so that
    catastrophic policies stay in range. Only its difference from the dense policy's is used.

    A network is constructed as `cls(encoder, **config)`. It reads the features of this encoder, of
    any shape. `config` holds the keys under `network:` in the predictor's YAML file.
    """

    @abstractmethod
    def forward(self, features: Float[Tensor, "batch ..."]) -> Float[Tensor, " batch"]: ...
