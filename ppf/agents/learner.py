"""Agents that train: rollouts and updates, with checkpoints and early stopping."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from lightning import Fabric
from torch import Tensor, nn

from ppf.agents.base import ELITES, Agent, Candidates, Objective, Run, predictions
from ppf.progress import track
from ppf.ranges import Count


@dataclass(frozen=True)
class Rollout:
    """The final policies of a batch of episodes.

    Args:
        kept: units that each site keeps.
        cost: predicted log-perplexity plus spread penalty, nats per token.
        ratio: ratio of each episode.
        gain: predicted log-perplexity of uniform pruning minus the cost, nats per token.
        metrics: metrics of the update that followed.
    """

    kept: Int[Tensor, "episodes sites"]
    cost: Float[Tensor, " episodes"]
    ratio: Float[Tensor, " episodes"]
    gain: Float[Tensor, " episodes"]
    metrics: Mapping[str, Tensor]


class Training(ABC):
    """The training of a learner on one rank; uses torch's global random generator only."""

    @abstractmethod
    def step(self) -> Rollout:
        """Runs one batch of episodes and updates the networks, together with the other ranks."""

    @abstractmethod
    def deviations(self, ratio: Float[Tensor, " batch"]) -> Float[Tensor, "batch sites"]:
        """Deviations from uniform pruning, without exploration.

        `Objective.policy` clips them to [-1, 1].
        """

    @abstractmethod
    def parts(self) -> dict[str, Any]:
        """The objects whose state a checkpoint must contain, by name."""


@dataclass(kw_only=True)
class Learner(Agent):
    """An agent that trains on the objective's interval of ratios.

    Args:
        iterations: largest number of iterations.
        patience: training stops after more than this many iterations without a better mean gain.

    Attributes:
        reported: iterations between two reports; the patience, too, is checked at these.
    """

    reported: ClassVar[int] = 1
    iterations: Count
    patience: Count

    @abstractmethod
    def begin(self, objective: Objective, fabric: Fabric) -> Training:
        """Starts a training. Ranks call this with equal seeds, so their networks start equal."""

    def search(self, objective: Objective, run: Run) -> Candidates:
        training, elites = self.learn(objective, run)
        ratio = objective.ratios(1)
        learnt = objective.policy(training.deviations(ratio), ratio)
        return Candidates.merge(elites, objective.candidates(learnt))

    def learn(self, objective: Objective, run: Run) -> tuple[Training, Candidates]:
        """Trains; returns the training, and the best policies tried at the objective's ratio."""
        fabric, checkpoint = run.fabric, run.checkpoint
        torch.manual_seed(run.seed)
        training = self.begin(objective, fabric)
        trained = training.parts()
        networks = {name: x for name, x in trained.items() if isinstance(x, nn.Module)}
        for name, state_dict in (run.learnt or {}).items():
            networks[name].load_state_dict(state_dict)
        torch.manual_seed(run.rank_seed)
        state = _LearnerState(objective.candidates(objective.starts()))
        parts = {"state": state, **trained}
        first = checkpoint.load(fabric, parts) if checkpoint else 0
        for report in state.reports:
            run.log(*report)
        for iteration in track(range(first, self.iterations), "Training the agent"):
            rollout = training.step()
            own = rollout.ratio == objective.ratio
            drawn = Candidates(rollout.kept[own], rollout.cost[own])
            state.elites = Candidates.merge(state.elites, drawn).best(ELITES)
            if iteration % self.reported == 0:
                gain = fabric.all_reduce(rollout.gain.mean(), reduce_op="mean")
                assert isinstance(gain, Tensor)
                metrics = predictions(objective, state.elites, rollout.kept, rollout.ratio)
                logged = {"reward": gain, **rollout.metrics, **metrics}
                state.reports.append((iteration, {k: float(v) for k, v in logged.items()}))
                run.log(*state.reports[-1])
                if gain > state.best[0]:
                    state.best = [float(gain), iteration]
                if iteration - state.best[1] > self.patience:
                    break
            if checkpoint:
                checkpoint.save(fabric, parts, iteration + 1)
        if checkpoint:
            checkpoint.remove(fabric)
        if run.learnt is not None:
            run.learnt.update({k: deepcopy(x.state_dict()) for k, x in networks.items()})
        return training, state.elites


@dataclass
class _LearnerState:
    """The best policies so far; the best mean gain so far, and its iteration; what was logged."""

    elites: Candidates
    best: list[float] = field(default_factory=lambda: [-torch.inf, 0])
    reports: list[tuple[int, dict[str, float]]] = field(default_factory=list)

    def state_dict(self) -> dict[str, Any]:
        elites = {"kept": self.elites.kept, "cost": self.elites.cost}
        return elites | {"best": self.best, "reports": self.reports}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        self.elites = Candidates(state_dict["kept"], state_dict["cost"])
        self.best, self.reports = state_dict["best"], state_dict["reports"]


def average_gradients(module: nn.Module, fabric: Fabric) -> None:
    """Replaces the gradients by their means over the ranks, in one all-reduce."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    flat = fabric.all_reduce(torch.cat([g.flatten() for g in gradients]), reduce_op="mean")
    assert isinstance(flat, Tensor)
    for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(mean.view_as(gradient))
