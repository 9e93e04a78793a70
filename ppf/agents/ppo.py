"""Proximal policy optimisation (arXiv 1707.06347), generalised advantages (arXiv 1506.02438)."""

from copy import deepcopy
from dataclasses import dataclass

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

from ppf.agents.base import ELITES, Candidates, Objective, Run, per_rank, predictions
from ppf.agents.environment import PruningEnvironment
from ppf.agents.learner import Learner, Learnt
from ppf.progress import track
from ppf.ranges import Count, Positive, PositiveShare


@dataclass(kw_only=True)
class PPO(Learner):
    """An actor with a stochastic policy, and a critic of states. Rewards are not discounted.

    Args:
        episodes: policies in one rollout, over all ranks.
        iterations: largest number of rollouts, each followed by an update.
        lr: learning rate of Adam; it falls linearly to a hundredth.
        clip: largest relative change of an action's probability that is rewarded.
        std: standard deviation of the first actions, before tanh.
    """

    episodes: Count
    iterations: Count
    lr: Positive
    clip: PositiveShare
    std: Positive

    def learn(self, objective: Objective, run: Run) -> tuple[Learnt, Candidates]:
        torch.manual_seed(run.seed)  # networks start equal on all ranks
        training = _Training(self, objective, run.fabric)
        if run.learnt:
            training.loss.load_state_dict(run.learnt["loss"])
        torch.manual_seed(run.rank_seed)
        elites = objective.candidates(objective.starts())
        best, at = -torch.inf, 0
        for iteration in track(range(self.iterations), "Training the agent"):
            played, ratio, gain, entropy = training.step()
            own = ratio == objective.ratio
            drawn = Candidates(played.kept[own], played.cost[own])
            elites = Candidates.merge(elites, drawn).best(ELITES)
            reward = run.fabric.all_reduce(gain.mean(), reduce_op="mean")
            assert isinstance(reward, Tensor)
            metrics = predictions(objective, elites, played.kept, ratio)
            run.log(iteration, {"reward": reward, "entropy": entropy, **metrics})
            if reward > best:
                best, at = float(reward), iteration
            if iteration - at > _PATIENCE:
                break
        if run.learnt is not None:
            run.learnt["loss"] = deepcopy(training.loss.state_dict())
        return training.policies, elites


class _Training:
    """Networks and optimizer on one rank; uses torch's global random generator only."""

    def __init__(self, config: PPO, objective: Objective, fabric: Fabric) -> None:
        self.objective, self.fabric = objective, fabric
        self.episodes = per_rank(config.episodes, fabric)
        self.environment = PruningEnvironment(objective)
        self.actor = _actor(self.environment, config.std)
        value = ValueOperator(_layers(self.environment, 1), in_keys=["observation"])
        value.to(objective.device)
        self.loss = ClipPPOLoss(
            self.actor,
            value,
            clip_epsilon=config.clip,
            entropy_coeff=0.0,
            critic_coeff=_CRITIC,
            normalize_advantage=True,
        )
        self.advantage = GAE(gamma=1.0, lmbda=_LAMBDA, value_network=value, shifted=True)
        self.optimizer = Adam(self.loss.parameters(), lr=config.lr)
        self.schedule = LinearLR(self.optimizer, 1.0, 0.01, config.iterations)

    def step(self) -> tuple[Candidates, Tensor, Tensor, Tensor]:
        """Plays one batch of episodes and updates the networks, together with the other ranks.

        Returns:
            The final policies in the order of the episodes, their ratios, their gains in nats per
            token, and the entropy of the last actions.
        """
        low, high = self.objective.interval
        draw = torch.rand(self.episodes, device=self.objective.device, dtype=torch.double)
        ratio = low + (high - low) * draw
        with torch.no_grad():
            rollout, played = self.environment.play(self.actor, ratio)
            self.advantage(rollout)
        losses = self._update(rollout.reshape(-1))
        self.schedule.step()
        return played, ratio, rollout["next", "reward"].sum(1).squeeze(-1), losses["entropy"]

    @torch.no_grad()
    def policies(self, ratio: Tensor) -> Tensor:
        """The policies of the ratios, without exploration."""
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            _, played = self.environment.play(self.actor, ratio)
        return played.kept

    def _update(self, samples: TensorDictBase) -> TensorDictBase:
        """Several passes over a rollout, with gradients averaged over the ranks."""
        for _ in range(_EPOCHS):
            order = torch.randperm(len(samples), device=samples.device)
            for rows in order.chunk(_MINIBATCHES):
                losses = self.loss(samples[rows])
                total = losses["loss_objective"] + losses["loss_critic"]
                self.optimizer.zero_grad()
                total.backward()
                average_gradients(self.loss, self.fabric)
                nn.utils.clip_grad_norm_(self.loss.parameters(), _GRADIENT)
                self.optimizer.step()
        return losses.detach()


def average_gradients(module: nn.Module, fabric: Fabric) -> None:
    """Replaces the gradients by their means over the ranks, in one all-reduce."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = fabric.all_reduce(torch.cat([g.flatten() for g in gradients]), reduce_op="mean")
    assert isinstance(flat, Tensor)
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))


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
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        default_interaction_type=ExplorationType.RANDOM,
        return_log_prob=True,
    ).to(environment.objective.device)


def _layers(environment: PruningEnvironment, outputs: int) -> nn.Sequential:
    """A network of observations with two hidden layers, whose initial outputs are near zero.

    The first policies are then near uniform pruning, and the untrained critic hardly moves the
    actor.
    """
    last = nn.Linear(_HIDDEN, outputs)
    nn.init.orthogonal_(last.weight, 0.01)
    nn.init.zeros_(last.bias)
    first, second = nn.Linear(environment.observed, _HIDDEN), nn.Linear(_HIDDEN, _HIDDEN)
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), last)


_PATIENCE = 20  # iterations without a better mean reward, after which training stops
_EPOCHS = 4  # passes of an update over its rollout
_MINIBATCHES = 4  # gradient steps in one pass
_LAMBDA = 1.0  # λ of the advantages; 1: full returns, since the only reward is at the end
_CRITIC = 0.5  # weight of the critic's loss
_GRADIENT = 1.0  # gradients are clipped to this norm
_HIDDEN = 64  # width of the hidden layers
