"""The rule that every search must beat."""

from lightning import Fabric

from ppf.agents.base import Agent, Candidates, Objective, Report


class Uniform(Agent):
    """The same share of every site."""

    def search(self, objective: Objective, fabric: Fabric, report: Report, seed: int) -> Candidates:
        return objective.candidates(objective.uniform())
