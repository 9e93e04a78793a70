"""Allocation rules, used as agents that do not search."""

from ppf.agents.base import Agent, Candidates, Objective, Polish, Run
from ppf.errors import PPFError
from ppf.pruning import Allocation
from ppf.ranges import Count
from ppf.space import project


class Rule(Agent):
    """Proposes the policy of an allocation rule, which may lie outside the trust region.

    Args:
        allocation: the rule.
        threads: see `Agent`.
        polish: None.

    Raises:
        PPFError: there is a polish.
    """

    def __init__(self, *, allocation: Allocation, threads: Count, polish: Polish | None) -> None:
        if polish is not None:
            raise PPFError(
                "an allocation rule has no agent.polish: leave it out, or give agent=starts."
            )
        super().__init__(threads=threads, polish=polish)
        self.allocation = allocation

    def search(self, objective: Objective, run: Run) -> Candidates:
        ratio = objective.ratios(1)
        wanted = self.allocation.wanted(objective.features, ratio)
        return objective.candidates(project(objective.space, wanted, ratio))
