"""Networks of the agents that act in the pruning environment."""

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from tensordict.nn.distributions import NormalParamExtractor
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator

from ppf.agents.environment import PruningEnvironment


def layers(inputs: int, outputs: int, hidden: int) -> nn.Sequential:
    """A network with two hidden layers, whose initial outputs are near zero.

    The first policies are then near uniform pruning, and untrained critics hardly move the actors.
    """
    last = nn.Linear(hidden, outputs)
    nn.init.orthogonal_(last.weight, 0.01)
    nn.init.zeros_(last.bias)
    first, second = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), last)


def observation_size(environment: PruningEnvironment) -> int:
    """Number of values in one observation."""
    return environment.observation_spec["observation"].shape[-1]


def stochastic_actor(
    environment: PruningEnvironment, hidden: int, std: float
) -> ProbabilisticActor:
    """An actor that samples from a Gaussian squashed to [-1, 1] by tanh.

    Args:
        std: initial standard deviation, before tanh, at least 1e-4. Training does not lower it
            below 0.01, or below half of `std` if that is less.
    """
    body = nn.Sequential(
        layers(observation_size(environment), 2, hidden),
        NormalParamExtractor(scale_mapping=f"biased_softplus_{std}_{min(std / 2, 0.01)}"),
    )
    return ProbabilisticActor(
        TensorDictModule(body, in_keys=["observation"], out_keys=["loc", "scale"]),
        spec=environment.action_spec,
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        default_interaction_type=ExplorationType.RANDOM,
        return_log_prob=True,
    ).to(environment.device)


def deterministic_actor(environment: PruningEnvironment, hidden: int) -> TensorDictModule:
    """An actor that gives one action in [-1, 1] for each observation."""
    body = nn.Sequential(layers(observation_size(environment), 1, hidden), nn.Softsign())
    actor = TensorDictModule(body, in_keys=["observation"], out_keys=["action"])
    return actor.to(environment.device)


class _ActionValue(nn.Module):
    """Reads observation, action and their product, since an action's effect depends on the site."""

    def __init__(self, observed: int, hidden: int) -> None:
        super().__init__()
        self.body = layers(2 * observed + 1, 1, hidden)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.body(torch.cat([observation, action, observation * action], -1))


def state_critic(environment: PruningEnvironment, hidden: int) -> ValueOperator:
    """A critic that estimates the gain from an observation."""
    body = layers(observation_size(environment), 1, hidden)
    return ValueOperator(body, in_keys=["observation"]).to(environment.device)


def action_critic(environment: PruningEnvironment, hidden: int) -> ValueOperator:
    """A critic that estimates the gain from an observation and an action."""
    body = _ActionValue(observation_size(environment), hidden)
    return ValueOperator(body, in_keys=["observation", "action"]).to(environment.device)


@torch.no_grad()
def play(environment: PruningEnvironment, actor: nn.Module) -> TensorDictBase:
    """Runs one batch of episodes, [episodes, sites]."""
    return environment.rollout(len(environment.objective.space), actor)


def greedy_actions(environment: PruningEnvironment, actor: nn.Module, ratio: Tensor) -> Tensor:
    """Actions of an actor at these ratios without exploration, [batch, sites]."""
    single = PruningEnvironment(environment.objective, len(ratio), environment.ratios, ratio)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        return play(single, actor)["action"].squeeze(-1)
