"""Deep deterministic policy gradient (arXiv 1509.02971), the agent of AMC (arXiv 1802.03494)."""

from typing import Any

from tensordict.nn import TensorDictSequential
from torch import nn
from torchrl.modules import AdditiveGaussianModule
from torchrl.objectives import DDPGLoss, LossModule

from ppf.agents.environment import PruningEnvironment
from ppf.agents.networks import action_critic, deterministic_actor
from ppf.agents.offpolicy import OffPolicy
from ppf.ranges import NonNegative


class DDPG(OffPolicy):
    """A deterministic actor, trained by the gradient of its critic; Gaussian noise explores.

    Args:
        noise: standard deviation of the noise on actions.
        off_policy: see `OffPolicy`.
    """

    def __init__(self, *, noise: NonNegative, **off_policy: Any) -> None:
        super().__init__(**off_policy)
        self.noise = noise

    def networks(self, environment: PruningEnvironment) -> tuple[nn.Module, nn.Module, LossModule]:
        actor = deterministic_actor(environment, self.hidden)
        value = action_critic(environment, self.hidden)
        loss = DDPGLoss(actor, value, delay_actor=True)
        return actor, noisy(actor, environment, self.noise), loss


def noisy(actor: nn.Module, environment: PruningEnvironment, std: float) -> nn.Module:
    """The actor with Gaussian noise on its actions, which are clipped to [-1, 1]."""
    std = float(std)  # torchrl warns about whole numbers
    noise = AdditiveGaussianModule(
        environment.action_spec, sigma_init=std, sigma_end=std, device=environment.device
    )
    return TensorDictSequential(actor, noise)
