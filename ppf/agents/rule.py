"""Allocation rules in place of agents, as baselines of a search."""

from dataclasses import dataclass
from typing import Any, ClassVar

from ppf.agents.base import Agent, Candidates, Objective, Run
from ppf.pruning import Allocation


@dataclass(kw_only=True)
class Rule(Agent):
    """Proposes the policy of an allocation rule, which may lie outside the trust region.

    Args:
        allocation: the rule.
    """

    baseline: ClassVar[bool] = True
    allocation: Allocation

    def search(self, objective: Objective, run: Run) -> Candidates:
        found = self.allocation.policies(objective.features, objective.ratios(1))
        return objective.candidates(found)

    def choices(self, objective: Objective, found: Candidates, known: Any, seed: int) -> Candidates:
        return found  # also if it is uniform pruning, which is known
