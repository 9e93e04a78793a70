"""Twin delayed DDPG (arXiv 1802.09477)."""

from typing import Any

from torch import nn
from torchrl.objectives import LossModule, TD3Loss

from ppf.agents.ddpg import noisy
from ppf.agents.environment import PruningEnvironment
from ppf.agents.networks import action_critic, deterministic_actor
from ppf.agents.offpolicy import OffPolicy
from ppf.ranges import NonNegative


class TD3(OffPolicy):
    """DDPG with the lower of two critics, and noise on the actions in the critics' targets.

    The actor and the target networks learn at every `delay`-th step of the critics.

    Args:
        noise: standard deviation of the noise on actions.
        smoothing: standard deviation of the noise on actions in the critics' targets.
        smoothing_clip: largest absolute value of that noise.
        off_policy: see `OffPolicy`.
    """

    def __init__(
        self,
        *,
        noise: NonNegative,
        smoothing: NonNegative,
        smoothing_clip: NonNegative,
        **off_policy: Any,
    ) -> None:
        super().__init__(**off_policy)
        self.noise, self.smoothing, self.smoothing_clip = noise, smoothing, smoothing_clip

    def networks(self, environment: PruningEnvironment) -> tuple[nn.Module, nn.Module, LossModule]:
        actor = deterministic_actor(environment, self.hidden)
        loss = TD3Loss(
            actor,
            action_critic(environment, self.hidden),
            action_spec=environment.action_spec_unbatched,
            policy_noise=self.smoothing,
            noise_clip=self.smoothing_clip,
        )
        return actor, noisy(actor, environment, self.noise), loss
