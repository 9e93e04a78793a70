"""Soft actor-critic (arXiv 1801.01290), with a learned temperature (arXiv 1812.05905)."""

from typing import Any

from torch import nn
from torchrl.objectives import LossModule, SACLoss

from ppf.agents.environment import PruningEnvironment
from ppf.agents.networks import action_critic, stochastic_actor
from ppf.agents.offpolicy import OffPolicy
from ppf.ranges import Positive


class SAC(OffPolicy):
    """A Gaussian actor with an entropy bonus, trained on the lower of two critics.

    Args:
        std: standard deviation of the first actions, before tanh.
        temperature: initial weight of the entropy in the reward.
        entropy: target entropy of an action in nats, which the temperature is tuned to.
        off_policy: see `OffPolicy`.
    """

    def __init__(
        self, *, std: Positive, temperature: Positive, entropy: float, **off_policy: Any
    ) -> None:
        super().__init__(**off_policy)
        self.std, self.temperature, self.entropy = std, temperature, entropy

    def networks(self, environment: PruningEnvironment) -> tuple[nn.Module, nn.Module, LossModule]:
        actor = stochastic_actor(environment, self.hidden, self.std)
        loss = SACLoss(
            actor,
            action_critic(environment, self.hidden),
            alpha_init=self.temperature,
            target_entropy=self.entropy,
        )
        return actor, actor, loss
