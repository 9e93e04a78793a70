"""REINFORCE (Williams 1992) without episodes: one draw decides all sites."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from lightning import Fabric
from torch import Tensor, nn
from torch.distributions import Normal
from torch.optim import Adam

from ppf.agents.base import Objective, per_rank
from ppf.agents.learner import Learner, Rollout, Training, average_gradients
from ppf.ranges import Positive, Several


@dataclass(kw_only=True)
class Reinforce(Learner):
    """Draws deviations from one Gaussian per site, whose mean is a polynomial in the ratio.

    Further arguments are those of `Learner`. An iteration is a batch, followed by a gradient step.

    Args:
        samples: policies in one batch, over all ranks.
        lr: learning rate of Adam.
        std: initial standard deviation of the Gaussians.
    """

    reported: ClassVar[int] = 5
    samples: Several
    lr: Positive
    std: Positive

    def begin(self, objective: Objective, fabric: Fabric) -> Training:
        return _ReinforceTraining(self, objective, fabric)


class _Gaussians(nn.Module):
    """Mean and standard deviation of each site's Gaussian.

    The mean is a polynomial in the ratio, rescaled so that the interval is [-1, 1].
    """

    def __init__(self, objective: Objective, std: float) -> None:
        super().__init__()
        sites, (self.low, self.high) = len(objective.space), objective.interval
        self.coefficients = nn.Parameter(torch.zeros(_DEGREE + 1, sites))
        self.log_std = nn.Parameter(torch.full((sites,), math.log(std)))

    def forward(self, ratio: Float[Tensor, " batch"]) -> Normal:
        place = (2 * ratio - self.low - self.high) / max(self.high - self.low, 1e-9)
        powers = place[:, None] ** torch.arange(len(self.coefficients), device=ratio.device)
        return Normal(powers.float() @ self.coefficients, self.log_std.exp())


class _ReinforceTraining(Training):
    def __init__(self, config: Reinforce, objective: Objective, fabric: Fabric) -> None:
        self.objective, self.fabric = objective, fabric
        self.samples = per_rank(config.samples, fabric, 2)  # advantages are relative
        self.policy = _Gaussians(objective, config.std).to(objective.device)
        self.optimizer = Adam(self.policy.parameters(), lr=config.lr)

    def step(self) -> Rollout:
        low, high = self.objective.interval
        draw = torch.rand(self.samples, device=self.objective.device, dtype=torch.double)
        ratio = low + (high - low) * draw
        gaussians = self.policy(ratio)
        deviation = gaussians.sample()
        kept = self.objective.policy(deviation, ratio)
        cost = self.objective.cost(kept)
        gain = self.objective.gain(cost, ratio)

        advantage = (gain - gain.mean()) / gain.std().clamp_min(1e-9)
        likelihood = gaussians.log_prob(deviation).sum(1)
        entropy = gaussians.entropy().mean()
        self.optimizer.zero_grad()
        (-(advantage * likelihood).mean()).backward()
        average_gradients(self.policy, self.fabric)
        self.optimizer.step()
        return Rollout(kept, cost, ratio, gain, {"entropy": entropy.detach()})

    @torch.no_grad()
    def deviations(self, ratio: Tensor) -> Tensor:
        return self.policy(ratio).mean

    def parts(self) -> dict[str, Any]:
        return {"policy": self.policy, "optimizer": self.optimizer}


_DEGREE = 3  # of the polynomial in the ratio
