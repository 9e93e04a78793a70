"""Agents that learn the policies of many ratios at once."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor

from ppf.agents.base import Agent, Candidates, Objective, Run

Learnt = Callable[[Float[Tensor, " batch"]], Int[Tensor, "batch sites"]]
"""The learnt policy of each ratio, inside the trust region and on budget."""


@dataclass(kw_only=True)
class Learner(Agent):
    """An agent that trains on the objective's interval of ratios; mode=dynamic needs one."""

    @abstractmethod
    def learn(self, objective: Objective, run: Run) -> tuple[Learnt, Candidates]:
        """Trains; returns what was learnt, and the best policies tried at the objective's ratio."""

    def search(self, objective: Objective, run: Run) -> Candidates:
        learnt, tried = self.learn(objective, run)
        return Candidates.merge(tried, objective.candidates(learnt(objective.ratios(1))))
