"""The starting points of every search, without a search of its own."""

from ppf.agents.base import Agent, Candidates, Objective, Run


class Starts(Agent):
    """Proposes the policies from which other agents start.

    With a polish, this is the baseline of agents that have the same polish.

    Args:
        threads: see `Agent`.
        polish: see `Agent`.
    """

    def search(self, objective: Objective, run: Run) -> Candidates:
        return objective.candidates(objective.starts())
