"""Networks of the agents that decide site by site."""

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from tensordict.nn.distributions import NormalParamExtractor
from torch import Tensor, nn
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator

from ppf.agents.environment import PruningEnvironment


def layers(inputs: int, outputs: int, hidden: int) -> nn.Sequential:
    """Two hidden layers; outputs start near zero.

    The first policies lie around uniform, and critics do not push actors before they have learnt.
    """
    last = nn.Linear(hidden, outputs)
    nn.init.orthogonal_(last.weight, 0.01)
    nn.init.zeros_(last.bias)
    first, second = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden)
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), last)


def observed(environment: PruningEnvironment) -> int:
    """Numbers of an observation."""
    return environment.observation_spec["observation"].shape[-1]


def stochastic_actor(
    environment: PruningEnvironment, hidden: int, std: float
) -> ProbabilisticActor:
    """A Gaussian of standard deviation `std` at the start, squeezed into [-1, 1]."""
    body = nn.Sequential(
        layers(observed(environment), 2, hidden),
        NormalParamExtractor(scale_mapping=f"biased_softplus_{std}"),
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
    """One action for each observation."""
    body = nn.Sequential(layers(observed(environment), 1, hidden), nn.Softsign())
    actor = TensorDictModule(body, in_keys=["observation"], out_keys=["action"])
    return actor.to(environment.device)


class _ActionValue(nn.Module):
    """Reads observation, action and their product: which site it is decides what an action does."""

    def __init__(self, observed: int, hidden: int) -> None:
        super().__init__()
        self.body = layers(2 * observed + 1, 1, hidden)

    def forward(self, observation: Tensor, action: Tensor) -> Tensor:
        return self.body(torch.cat([observation, action, observation * action], -1))


def state_critic(environment: PruningEnvironment, hidden: int) -> ValueOperator:
    """The gain to come, as seen from an observation."""
    body = layers(observed(environment), 1, hidden)
    return ValueOperator(body, in_keys=["observation"]).to(environment.device)


def action_critic(environment: PruningEnvironment, hidden: int) -> ValueOperator:
    """The gain to come after an action."""
    body = _ActionValue(observed(environment), hidden)
    return ValueOperator(body, in_keys=["observation", "action"]).to(environment.device)


@torch.no_grad()
def play(environment: PruningEnvironment, actor: nn.Module) -> TensorDictBase:
    """One episode in every lane, [episodes, sites]."""
    return environment.rollout(len(environment.objective.space), actor)


def intended(environment: PruningEnvironment, actor: nn.Module, ratio: Tensor) -> Tensor:
    """What an actor does at these ratios without exploring, [batch, sites]."""
    single = PruningEnvironment(environment.objective, len(ratio), environment.ratios, ratio)
    with set_exploration_type(ExplorationType.DETERMINISTIC):
        return play(single, actor)["action"].squeeze(-1)
