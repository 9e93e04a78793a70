"""Allocation rules, published and not searched, in the place of an agent."""

from ppf.agents.base import Agent, Candidates, Objective, Polish, Run
from ppf.pruning import Allocation
from ppf.ranges import Count
from ppf.space import project


class Rule(Agent):
    """The one policy of an allocation rule, wherever it lies."""

    def __init__(self, *, allocation: Allocation, threads: Count, polish: Polish | None) -> None:
        super().__init__(threads=threads, polish=polish)
        self.allocation = allocation

    def search(self, objective: Objective, run: Run) -> Candidates:
        ratio = objective.ratios(1)
        wanted = self.allocation.wanted(objective.features, ratio)
        return objective.candidates(project(objective.space, wanted, ratio))
