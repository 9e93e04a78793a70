"""Ensembles: copies of one network, trained and evaluated in one batched pass."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ppf.predictor.network import Network


class Ensemble(nn.Module):
    """Members of one architecture with different initial weights; all parameters are stacked.

    Args:
        build: makes one member with random weights. Members share their buffers, which must
            therefore not be random.
        members: number of members.

    Source: deep ensembles (arXiv 1612.01474).
    """

    def __init__(self, build: Callable[[], Network], members: int) -> None:
        super().__init__()
        made = [build() for _ in range(members)]
        self.names = [name for name, _ in made[0].named_parameters()]
        self.stacked = nn.ParameterList(
            torch.stack([member.get_parameter(name).detach() for member in made])
            for name in self.names
        )
        self.skeleton = made[0]
        for module in self.skeleton.modules():
            for name in list(module._parameters):
                module.register_parameter(name, None)

    def forward(self, features: Float[Tensor, "batch ..."]) -> Float[Tensor, "members batch"]:
        """The prediction of every member."""

        def member(parameters: dict[str, Tensor]) -> Tensor:
            return functional_call(self.skeleton, parameters, (features,))

        stacked = dict(zip(self.names, self.stacked, strict=True))
        return vmap(member, randomness="different")(stacked)
