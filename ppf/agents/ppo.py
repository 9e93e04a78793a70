"""Proximal policy optimisation (arXiv 1707.06347), generalised advantages (arXiv 1506.02438)."""

from typing import Any, ClassVar

import torch
from lightning import Fabric
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim.lr_scheduler import LinearLR
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from ppf.agents.base import Objective, per_rank
from ppf.agents.checkpoint import Stateful
from ppf.agents.environment import PruningEnvironment
from ppf.agents.learner import Learner, Rollout, Training, average_gradients
from ppf.agents.networks import greedy_actions, play, state_critic, stochastic_actor
from ppf.ranges import Count, NonNegative, Positive, PositiveShare, Share


class PPO(Learner):
    """An actor with a stochastic policy, and a critic of states. Rewards are not discounted.

    Args:
        episodes: policies in one rollout, over all ranks.
        epochs: passes of an update over its rollout.
        minibatches: gradient steps in one pass.
        lr: learning rate of Adam; it falls linearly to a hundredth.
        lmbda: λ of generalised advantage estimation; 1: full returns.
        clip: largest relative change of an action's probability that is rewarded.
        entropy: weight of the entropy bonus.
        critic: weight of the critic's loss.
        grad_norm: gradients are clipped to this norm.
        hidden: width of the two hidden layers.
        std: standard deviation of the first actions, before tanh.
        learner: see `Learner`; an iteration is a rollout, followed by an update.
    """

    shared: ClassVar[str | None] = "episodes"

    def __init__(
        self,
        *,
        episodes: Count,
        epochs: Count,
        minibatches: Count,
        lr: Positive,
        lmbda: Share,
        clip: PositiveShare,
        entropy: NonNegative,
        critic: NonNegative,
        grad_norm: Positive,
        hidden: Count,
        std: Positive,
        **learner: Any,
    ) -> None:
        super().__init__(**learner)
        self.episodes, self.epochs, self.minibatches = episodes, epochs, minibatches
        self.lr, self.lmbda, self.clip, self.grad_norm = lr, lmbda, clip, grad_norm
        self.entropy, self.critic, self.hidden, self.std = entropy, critic, hidden, std

    def begin(self, objective: Objective, fabric: Fabric) -> Training:
        return _PPOTraining(self, objective, fabric)


class _PPOTraining(Training):
    def __init__(self, config: PPO, objective: Objective, fabric: Fabric) -> None:
        self.config, self.fabric = config, fabric
        episodes = per_rank(config.episodes, "episodes", fabric)
        self.environment = PruningEnvironment(objective, episodes, objective.interval)
        self.actor = stochastic_actor(self.environment, config.hidden, config.std)
        value = state_critic(self.environment, config.hidden)
        self.loss = ClipPPOLoss(
            self.actor,
            value,
            clip_epsilon=config.clip,
            entropy_coeff=config.entropy,
            critic_coeff=config.critic,
            normalize_advantage=True,
        )
        self.advantage = GAE(gamma=1.0, lmbda=config.lmbda, value_network=value, shifted=True)
        self.optimizer = Adam(self.loss.parameters(), lr=config.lr)
        self.schedule = LinearLR(self.optimizer, 1.0, 0.01, config.iterations)

    def step(self) -> Rollout:
        rollout = play(self.environment, self.actor)
        finished = self.environment.finished
        with torch.no_grad():
            self.advantage(rollout)
        losses = self._update(rollout.reshape(-1))
        self.schedule.step()
        gain = rollout["next", "reward"].sum(1).squeeze(-1)
        metrics = {"entropy": losses["entropy"]}
        return Rollout(finished.kept, finished.cost, self.environment.ratio, gain, metrics)

    def _update(self, samples: TensorDictBase) -> TensorDictBase:
        """Several passes over a rollout, with gradients averaged over the ranks."""
        for _ in range(self.config.epochs):
            order = torch.randperm(len(samples), device=samples.device)
            for rows in order.chunk(self.config.minibatches):
                losses = self.loss(samples[rows])
                total = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
                self.optimizer.zero_grad()
                total.backward()
                average_gradients(self.loss, self.fabric)
                nn.utils.clip_grad_norm_(self.loss.parameters(), self.config.grad_norm)
                self.optimizer.step()
        return losses.detach()

    def deviations(self, ratio: Tensor) -> Tensor:
        return greedy_actions(self.environment, self.actor, ratio)

    def parts(self) -> dict[str, Stateful]:
        return {"loss": self.loss, "optimizer": self.optimizer, "schedule": self.schedule}
