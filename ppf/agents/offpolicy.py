"""Base of the agents with a replay buffer: SAC, DDPG and TD3."""

from abc import abstractmethod
from typing import Any, ClassVar

import torch
from lightning import Fabric
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.optim import Adam
from torchrl.data import LazyTensorStorage, TensorDictReplayBuffer
from torchrl.data.postprocs import MultiStep
from torchrl.objectives import LossModule, SoftUpdate

from ppf.agents.base import Objective, per_rank
from ppf.agents.checkpoint import Stateful
from ppf.agents.environment import PruningEnvironment
from ppf.agents.learner import Learner, Rollout, Training, average_gradients
from ppf.agents.networks import greedy_actions, play
from ppf.errors import PPFError
from ppf.ranges import Count, Natural, Positive, Share


class OffPolicy(Learner):
    """Explores with noise, stores transitions in a buffer, and learns from samples of it.

    Args:
        episodes: policies in one batch of episodes, over all ranks.
        warmup: first batches of episodes, during which only the critics learn.
        updates: gradient steps after each batch of episodes.
        delay: gradient steps of the critics for each step of the actor and the target networks.
        batch: transitions in one gradient step, on every rank.
        buffer_size: most transitions that the replay buffer holds, on every rank.
        n_steps: number of rewards in an n-step return, before the critic's estimate.
        lr: learning rate of Adam.
        tau: rate of the target networks' exponential moving average; larger: faster.
        grad_norm: gradients are clipped to this norm.
        hidden: width of the two hidden layers.
        learner: see `Learner`; an iteration is a batch of episodes, followed by updates.
    """

    shared: ClassVar[str | None] = "episodes"

    def __init__(
        self,
        *,
        episodes: Count,
        warmup: Natural,
        updates: Count,
        delay: Count,
        batch: Count,
        buffer_size: Count,
        n_steps: Count,
        lr: Positive,
        tau: Share,
        grad_norm: Positive,
        hidden: Count,
        **learner: Any,
    ) -> None:
        super().__init__(**learner)
        if updates % delay:
            raise PPFError(
                f"agent.updates={updates} is not a multiple of agent.delay={delay}: give"
                f" agent.updates={-(-updates // delay) * delay}."
            )
        self.episodes, self.warmup, self.updates, self.delay = episodes, warmup, updates, delay
        self.batch, self.buffer_size, self.n_steps = batch, buffer_size, n_steps
        self.lr, self.tau = lr, tau
        self.grad_norm, self.hidden = grad_norm, hidden

    def begin(self, objective: Objective, fabric: Fabric) -> Training:
        return _OffPolicyTraining(self, objective, fabric)

    @abstractmethod
    def networks(self, environment: PruningEnvironment) -> tuple[nn.Module, nn.Module, LossModule]:
        """The actor, the actor with exploration, and the loss of actor and critics."""


class _OffPolicyTraining(Training):
    def __init__(self, config: OffPolicy, objective: Objective, fabric: Fabric) -> None:
        self.config, self.fabric = config, fabric
        episodes = per_rank(config.episodes, "episodes", fabric)
        self.environment = PruningEnvironment(objective, episodes, objective.interval)
        self.actor, self.explorer, self.loss = config.networks(self.environment)
        self.loss.make_value_estimator(gamma=1.0)
        self.targets = SoftUpdate(self.loss, tau=config.tau)
        self.optimizer = Adam(self.loss.parameters(), lr=config.lr)
        transitions = config.warmup * episodes * len(objective.space)
        self.warmup = min(transitions, config.buffer_size - 1)  # a full buffer ends it too
        storage = LazyTensorStorage(config.buffer_size, device=objective.device)
        self.buffer = TensorDictReplayBuffer(storage=storage, batch_size=config.batch)

    def step(self) -> Rollout:
        rollout = play(self.environment, self.explorer)
        finished = self.environment.finished
        gain = rollout["next", "reward"].sum(1).squeeze(-1)
        transitions = n_step(rollout, self.config.n_steps)
        self.buffer.extend(transitions.select(*_STORED).reshape(-1))
        for number in range(1, self.config.updates + 1):
            delayed = number % self.config.delay > 0
            losses = self._update(self.buffer.sample(), critics_only=delayed)
        metrics = {name: losses[name] for name in ("entropy", "alpha") if name in losses}
        return Rollout(finished.kept, finished.cost, self.environment.ratio, gain, metrics)

    def _update(self, samples: TensorDictBase, *, critics_only: bool) -> TensorDictBase:
        """One gradient step with gradients averaged over the ranks."""
        losses = self.loss(samples)
        self.optimizer.zero_grad()
        warming_up = len(self.buffer) <= self.warmup
        learning = _CRITICS if critics_only or warming_up else _LOSSES
        total = sum(value for name, value in losses.items() if name in learning)
        torch.as_tensor(total).backward()
        average_gradients(self.loss, self.fabric)
        nn.utils.clip_grad_norm_(self.loss.parameters(), self.config.grad_norm)
        self.optimizer.step()
        if not critics_only:
            self.targets.step()
        return losses.detach()

    def deviations(self, ratio: Tensor) -> Tensor:
        return greedy_actions(self.environment, self.actor, ratio)

    def parts(self) -> dict[str, Stateful]:
        return {"loss": self.loss, "optimizer": self.optimizer, "buffer": self.buffer}


def n_step(rollout: TensorDictBase, steps: int) -> TensorDictBase:
    """Transitions over `steps` steps, or to the end of the episode, with their summed rewards.

    Args:
        rollout: transitions over one step, [episodes, sites].
    """
    transitions = MultiStep(1.0, steps)(rollout)
    here = torch.arange(rollout.shape[1], device=rollout.device)
    reached = here + transitions["steps_to_next_obs"] - 1
    for flag in ("done", "terminated"):  # MultiStep keeps those of the first step
        transitions["next", flag] = rollout["next", flag].gather(1, reached[..., None])
    return transitions


_CRITICS = {"loss_qvalue", "loss_value"}
_LOSSES = _CRITICS | {"loss_actor", "loss_alpha"}
_STORED = (
    "observation",
    "action",
    ("next", "observation"),
    ("next", "reward"),
    ("next", "done"),
    ("next", "terminated"),
    "steps_to_next_obs",
)
