"""Proximal policy optimisation (arXiv 1707.06347), generalised advantages (arXiv 1506.02438)."""

from dataclasses import dataclass
from typing import Any

import torch
from lightning import Fabric
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from tensordict.nn.distributions import NormalParamExtractor
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import LinearLR
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from ppf.agents.base import Objective, per_rank
from ppf.agents.environment import PruningEnvironment
from ppf.agents.learner import Learner, Rollout, Training, average_gradients
from ppf.ranges import Count, NonNegative, Positive, PositiveShare


@dataclass(kw_only=True)
class PPO(Learner):
    """An actor with a stochastic policy, and a critic of states. Rewards are not discounted.

    Further arguments are those of `Learner`. An iteration is a rollout, followed by an update.

    Args:
        episodes: policies in one rollout, over all ranks.
        lr: learning rate of Adam; it falls linearly to a hundredth.
        clip: largest relative change of an action's probability that is rewarded.
        entropy: weight of the entropy bonus.
        std: standard deviation of the first actions, before tanh.
    """

    episodes: Count
    lr: Positive
    clip: PositiveShare
    entropy: NonNegative
    std: Positive

    def begin(self, objective: Objective, fabric: Fabric) -> Training:
        return _PPOTraining(self, objective, fabric)


class _PPOTraining(Training):
    def __init__(self, config: PPO, objective: Objective, fabric: Fabric) -> None:
        self.fabric = fabric
        episodes = per_rank(config.episodes, fabric)
        self.environment = PruningEnvironment(objective, episodes)
        self.actor = _actor(self.environment, config.std)
        value = ValueOperator(_layers(self.environment, 1), in_keys=["observation"])
        value.to(objective.device)
        self.loss = ClipPPOLoss(
            self.actor,
            value,
            clip_epsilon=config.clip,
            entropy_coeff=config.entropy,
            critic_coeff=_CRITIC,
            normalize_advantage=True,
        )
        self.advantage = GAE(gamma=1.0, lmbda=_LAMBDA, value_network=value, shifted=True)
        self.optimizer = Adam(self.loss.parameters(), lr=config.lr)
        self.schedule = LinearLR(self.optimizer, 1.0, 0.01, config.iterations)

    def step(self) -> Rollout:
        rollout = self._play(self.environment)
        finished = self.environment.finished
        with torch.no_grad():
            self.advantage(rollout)
        losses = self._update(rollout.reshape(-1))
        self.schedule.step()
        gain = rollout["next", "reward"].sum(1).squeeze(-1)
        metrics = {"entropy": losses["entropy"]}
        return Rollout(finished.kept, finished.cost, self.environment.ratio, gain, metrics)

    @torch.no_grad()
    def _play(self, environment: PruningEnvironment) -> TensorDictBase:
        """Runs one batch of episodes, [episodes, sites]."""
        return environment.rollout(len(environment.objective.space), self.actor)

    def _update(self, samples: TensorDictBase) -> TensorDictBase:
        """Several passes over a rollout, with gradients averaged over the ranks."""
        for _ in range(_EPOCHS):
            order = torch.randperm(len(samples), device=samples.device)
            for rows in order.chunk(_MINIBATCHES):
                losses = self.loss(samples[rows])
                total = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
                self.optimizer.zero_grad()
                total.backward()
                average_gradients(self.loss, self.fabric)
                nn.utils.clip_grad_norm_(self.loss.parameters(), _GRADIENT)
                self.optimizer.step()
        return losses.detach()

    def deviations(self, ratio: Tensor) -> Tensor:
        single = PruningEnvironment(self.environment.objective, len(ratio), ratio)
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            return self._play(single)["action"].squeeze(-1)

    def parts(self) -> dict[str, Any]:
        return {"loss": self.loss, "optimizer": self.optimizer, "schedule": self.schedule}


def _actor(environment: PruningEnvironment, std: float) -> ProbabilisticActor:
    """An actor that samples from a Gaussian squashed to [-1, 1] by tanh.

    Args:
        std: initial standard deviation, before tanh, at least 1e-4. Training does not lower it
            below 0.01, or below half of `std` if that is less.
    """
    body = nn.Sequential(
        _layers(environment, 2),
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


def _layers(environment: PruningEnvironment, outputs: int) -> nn.Sequential:
    """A network of observations with two hidden layers, whose initial outputs are near zero.

    The first policies are then near uniform pruning, and the untrained critic hardly moves the
    actor.
    """
    last = nn.Linear(_HIDDEN, outputs)
    nn.init.orthogonal_(last.weight, 0.01)
    nn.init.zeros_(last.bias)
    observed = environment.observation_spec["observation"].shape[-1]
    first, second = nn.Linear(observed, _HIDDEN), nn.Linear(_HIDDEN, _HIDDEN)
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), last)


_EPOCHS = 4  # passes of an update over its rollout
_MINIBATCHES = 4  # gradient steps in one pass
_LAMBDA = 1.0  # λ of the advantages; 1: full returns, since the only reward is at the end
_CRITIC = 0.5  # weight of the critic's loss
_GRADIENT = 1.0  # gradients are clipped to this norm
_HIDDEN = 64  # width of the hidden layers
