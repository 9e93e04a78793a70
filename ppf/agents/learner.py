"""Agents that train: iterations of playing and learning, kept in checkpoints, stopped early."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from lightning import Fabric
from torch import Tensor, nn

from ppf.agents.base import Agent, Candidates, Objective, Polish, Run, predictions
from ppf.agents.checkpoint import Stateful
from ppf.ranges import Count


@dataclass(frozen=True)
class Rollout:
    """Policies that episodes ended in.

    Args:
        gain: predicted nats per token saved against uniform pruning, spread penalty included.
        metrics: of what was learnt from them.
    """

    kept: Int[Tensor, "episodes sites"]
    cost: Float[Tensor, " episodes"]
    ratio: Float[Tensor, " episodes"]
    gain: Float[Tensor, " episodes"]
    metrics: Mapping[str, Tensor]


class Training(ABC):
    """A learner at work on one rank. All its randomness comes from torch's global generator."""

    @abstractmethod
    def step(self) -> Rollout:
        """Plays one batch of episodes and learns from it, together with the other ranks."""

    @abstractmethod
    def deviations(self, ratio: Float[Tensor, " batch"]) -> Float[Tensor, "batch sites"]:
        """What it would do at these ratios without exploring, in [-1, 1] of the trust region."""

    @abstractmethod
    def parts(self) -> dict[str, Stateful]:
        """All that a checkpoint must hold."""


class Learner(Agent):
    """Trains on the objective's interval of ratios.

    Args:
        iterations: at most.
        patience: iterations without a better mean gain after which training stops.
        elites: best policies that are kept.
        report_every: iterations between reports.
    """

    def __init__(
        self,
        *,
        iterations: Count,
        patience: Count,
        elites: Count,
        report_every: Count,
        threads: Count,
        polish: Polish | None,
    ) -> None:
        super().__init__(threads=threads, polish=polish)
        self.iterations, self.patience = iterations, patience
        self.elites, self.report_every = elites, report_every

    @abstractmethod
    def begin(self, objective: Objective, fabric: Fabric) -> Training:
        """A training from the start; ranks call this with the same generator."""

    def search(self, objective: Objective, run: Run) -> Candidates:
        training, elites = self.learn(objective, run)
        ratio = objective.ratios(1)
        learnt = objective.policy(training.deviations(ratio), ratio)
        return Candidates.merge(elites, objective.candidates(learnt))

    def learn(self, objective: Objective, run: Run) -> tuple[Training, Candidates]:
        """The finished training, and the best policies that it met at the objective's ratio."""
        fabric, checkpoint = run.fabric, run.checkpoint
        torch.manual_seed(run.seed)
        training = self.begin(objective, fabric)
        torch.manual_seed(run.rank_seed)
        memory = _Memory(objective.candidates(objective.starts()))
        parts = {"memory": memory, **training.parts()}
        first = checkpoint.load(fabric, parts) if checkpoint else 0
        for iteration in range(first, self.iterations):
            played = training.step()
            memory.take(objective, played, self.elites)
            if iteration % self.report_every == 0:
                gain = fabric.all_reduce(played.gain.mean(), reduce_op="mean")
                assert isinstance(gain, Tensor)
                metrics = predictions(objective, memory.elites, played.kept, played.ratio)
                run.tell(iteration, {"reward": gain, **played.metrics, **metrics})
                if memory.stale(iteration, float(gain)) > self.patience:
                    break
            if checkpoint:
                checkpoint.save(fabric, parts, iteration + 1)
        if checkpoint:
            checkpoint.remove(fabric)
        return training, memory.elites


@dataclass
class _Memory:
    """The best policies and the best mean gain so far."""

    elites: Candidates
    best: list[float] = field(default_factory=lambda: [-torch.inf, 0])

    def take(self, objective: Objective, played: Rollout, count: int) -> None:
        """Remembers what was played at the objective's own ratio."""
        own = played.ratio == objective.ratio
        drawn = Candidates(played.kept[own], played.cost[own])
        self.elites = Candidates.merge(self.elites, drawn).best(count)

    def stale(self, iteration: int, gain: float) -> int:
        """Iterations since the best mean gain."""
        if gain > self.best[0]:
            self.best = [gain, iteration]
        return iteration - int(self.best[1])

    def state_dict(self) -> dict[str, Any]:
        return {"kept": self.elites.kept, "cost": self.elites.cost, "best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        self.elites = Candidates(state_dict["kept"], state_dict["cost"])
        self.best = state_dict["best"]


def average_gradients(module: nn.Module, fabric: Fabric) -> None:
    """Replaces the gradients by their means over the ranks, in one exchange."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = fabric.all_reduce(torch.cat([g.flatten() for g in gradients]), reduce_op="mean")
    assert isinstance(flat, Tensor)
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
