"""REINFORCE (Williams 1992) without episodes: one draw decides all sites."""

import math
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from lightning import Fabric
from torch import Tensor, nn
from torch.distributions import Normal
from torch.optim import Adam

from ppf.agents.base import Objective, per_rank
from ppf.agents.checkpoint import Stateful
from ppf.agents.learner import Learner, Rollout, Training, average_gradients
from ppf.ranges import Natural, NonNegative, Positive, Several


class Reinforce(Learner):
    """Draws deviations from one Gaussian per site, whose mean is a polynomial in the ratio.

    Args:
        samples: policies in one batch, over all ranks.
        lr: learning rate of Adam.
        std: initial standard deviation of the Gaussians.
        degree: degree of the polynomial.
        entropy: weight of the entropy bonus.
        learner: see `Learner`; an iteration is a batch, followed by one gradient step.
    """

    shared: ClassVar[str | None] = "samples"
    least_shared: ClassVar[int] = 2  # advantages are relative to the batch

    def __init__(
        self,
        *,
        samples: Several,
        lr: Positive,
        std: Positive,
        degree: Natural,
        entropy: NonNegative,
        **learner: Any,
    ) -> None:
        super().__init__(**learner)
        self.samples, self.lr, self.std = samples, lr, std
        self.degree, self.entropy = degree, entropy

    def begin(self, objective: Objective, fabric: Fabric) -> Training:
        return _ReinforceTraining(self, objective, fabric)


class _Gaussians(nn.Module):
    """Mean and standard deviation of each site's Gaussian.

    The mean is a polynomial in the ratio, rescaled so that the interval is [-1, 1].
    """

    def __init__(self, objective: Objective, degree: int, std: float) -> None:
        super().__init__()
        sites, (self.low, self.high) = len(objective.space), objective.interval
        self.coefficients = nn.Parameter(torch.zeros(degree + 1, sites))
        self.log_std = nn.Parameter(torch.full((sites,), math.log(std)))

    def forward(self, ratio: Float[Tensor, " batch"]) -> Normal:
        place = (2 * ratio - self.low - self.high) / max(self.high - self.low, 1e-9)
        powers = place[:, None] ** torch.arange(len(self.coefficients), device=ratio.device)
        return Normal(powers.float() @ self.coefficients, self.log_std.exp())


class _ReinforceTraining(Training):
    def __init__(self, config: Reinforce, objective: Objective, fabric: Fabric) -> None:
        self.config, self.objective, self.fabric = config, objective, fabric
        self.samples = per_rank(config.samples, "samples", fabric, config.least_shared)
        self.policy = _Gaussians(objective, config.degree, config.std).to(objective.device)
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
        (-(advantage * likelihood).mean() - self.config.entropy * entropy).backward()
        average_gradients(self.policy, self.fabric)
        self.optimizer.step()
        return Rollout(kept, cost, ratio, gain, {"entropy": entropy.detach()})

    @torch.no_grad()
    def deviations(self, ratio: Tensor) -> Tensor:
        return self.policy(ratio).mean

    def parts(self) -> dict[str, Stateful]:
        return {"policy": self.policy, "optimizer": self.optimizer}
