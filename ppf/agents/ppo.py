"""Proximal policy optimisation (arXiv 1707.06347), generalised advantages (arXiv 1506.02438)."""

import torch
from lightning import Fabric
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from tensordict.nn.distributions import NormalParamExtractor
from torch import Tensor, nn
from torch.optim import Optimizer
from torchrl.envs.utils import ExplorationType, set_exploration_type
from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator
from torchrl.objectives import ClipPPOLoss
from torchrl.objectives.value import GAE

from ppf.agents.base import (
    Agent,
    Candidates,
    Objective,
    Polish,
    Report,
    predictions,
    rank_seed,
    share,
)
from ppf.agents.environment import PruningEnvironment


class PPO(Agent):
    """An actor that decides site by site, and a critic of where that leads.

    Args:
        episodes: policies in one rollout, over all ranks.
        iterations: rollouts, each followed by an update.
        epochs: passes of an update over its rollout.
        minibatches: gradient steps in a pass.
        lr: of Adam, falling linearly to a hundredth.
        lmbda: of the generalised advantages; episodes are short, nothing is discounted.
        clip: largest relative change of an action's probability that is rewarded.
        entropy: weight of the entropy bonus.
        critic: weight of the critic's loss.
        grad_norm: gradients are clipped to this norm.
        hidden: width of the two hidden layers.
        std: of the actions at the start, before tanh squeezes them into the trust region.
        elites: best policies that are kept.
        report_every: iterations between reports.
    """

    def __init__(
        self,
        *,
        episodes: int,
        iterations: int,
        epochs: int,
        minibatches: int,
        lr: float,
        lmbda: float,
        clip: float,
        entropy: float,
        critic: float,
        grad_norm: float,
        hidden: int,
        std: float,
        elites: int,
        report_every: int,
        threads: int,
        polish: Polish | None,
    ) -> None:
        super().__init__(threads=threads, polish=polish)
        self.episodes, self.iterations = episodes, iterations
        self.epochs, self.minibatches = epochs, minibatches
        self.lr, self.lmbda, self.clip, self.grad_norm = lr, lmbda, clip, grad_norm
        self.entropy, self.critic, self.hidden, self.std = entropy, critic, hidden, std
        self.elites, self.report_every = elites, report_every

    def search(self, objective: Objective, fabric: Fabric, report: Report, seed: int) -> Candidates:
        episodes, ratios = share(self.episodes, "episodes", fabric), (objective.ratio,) * 2
        environment = PruningEnvironment(objective, episodes, ratios)
        torch.manual_seed(seed)
        actor, critic = self._networks(environment)
        loss = ClipPPOLoss(
            actor,
            critic,
            clip_epsilon=self.clip,
            entropy_coeff=self.entropy,
            critic_coeff=self.critic,
            normalize_advantage=True,
        )
        advantage = GAE(gamma=1.0, lmbda=self.lmbda, value_network=critic, shifted=True)
        optimizer = torch.optim.Adam(loss.parameters(), lr=self.lr)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, self.iterations)
        elites = objective.candidates(objective.starts())

        torch.manual_seed(rank_seed(seed, fabric))
        for iteration in range(self.iterations):
            rollout, drawn = _play(environment, actor)
            with torch.no_grad():
                advantage(rollout)
            losses = self._update(loss, optimizer, rollout.reshape(-1), fabric)
            schedule.step()

            elites = Candidates.merge(elites, drawn).best(self.elites)
            if iteration % self.report_every == 0:
                reward = rollout["next", "reward"].sum(1).mean()
                metrics = {"reward": reward, "entropy": losses["entropy"]}
                report(iteration, metrics | predictions(objective, elites, drawn))

        with set_exploration_type(ExplorationType.DETERMINISTIC):
            _, learnt = _play(PruningEnvironment(objective, 1, ratios), actor)
        return Candidates.merge(elites, learnt)

    def _update(
        self, loss: ClipPPOLoss, optimizer: Optimizer, samples: TensorDictBase, fabric: Fabric
    ) -> TensorDictBase:
        """Several passes of clipped gradient steps over a rollout; ranks step together."""
        for _ in range(self.epochs):
            order = torch.randperm(len(samples), device=samples.device)
            for rows in order.chunk(self.minibatches):
                losses = loss(samples[rows])
                total = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
                optimizer.zero_grad()
                fabric.backward(total)
                average_gradients(loss, fabric)
                nn.utils.clip_grad_norm_(loss.parameters(), self.grad_norm)
                optimizer.step()
        return losses.detach()

    def _networks(
        self, environment: PruningEnvironment
    ) -> tuple[ProbabilisticActor, ValueOperator]:
        features = environment.observation_spec["observation"].shape[-1]
        actor = ProbabilisticActor(
            TensorDictModule(
                nn.Sequential(
                    self._layers(features, 2),
                    NormalParamExtractor(scale_mapping=f"biased_softplus_{self.std}"),
                ),
                in_keys=["observation"],
                out_keys=["loc", "scale"],
            ),
            spec=environment.action_spec,
            in_keys=["loc", "scale"],
            distribution_class=TanhNormal,
            default_interaction_type=ExplorationType.RANDOM,
            return_log_prob=True,
        )
        critic = ValueOperator(self._layers(features, 1), in_keys=["observation"])
        return actor.to(environment.device), critic.to(environment.device)

    def _layers(self, features: int, outputs: int) -> nn.Sequential:
        """Two hidden layers; outputs start near zero: the first policies lie around uniform."""
        last = nn.Linear(self.hidden, outputs)
        nn.init.orthogonal_(last.weight, 0.01)
        nn.init.zeros_(last.bias)
        first, second = nn.Linear(features, self.hidden), nn.Linear(self.hidden, self.hidden)
        return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), last)


@torch.no_grad()
def _play(
    environment: PruningEnvironment, actor: ProbabilisticActor
) -> tuple[TensorDictBase, Candidates]:
    """One episode in every lane, [episodes, sites], and the policies that they ended in."""
    rollout = environment.rollout(len(environment.objective.space), actor)
    return rollout, environment.finished


def average_gradients(module: nn.Module, fabric: Fabric) -> None:
    """Replaces the gradients by their means over the ranks, in one exchange."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = fabric.all_reduce(torch.cat([g.flatten() for g in gradients]), reduce_op="mean")
    assert isinstance(flat, Tensor)
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
