"""Covariance matrix adaptation on the sites' deviations, by the package `cmaes`.

Source: CMA-ES (arXiv 1604.00772); separable (Ros & Hansen 2008) where there are many sites.
"""

from typing import Annotated

import numpy as np
import torch
from cmaes import CMA, SepCMA
from pydantic import Field

from ppf.agents.base import Agent, Candidates, Objective, Polish, Run, predictions
from ppf.ranges import Count, Natural, Positive


class CMAES(Agent):
    """A Gaussian over all sites that moves and stretches towards the better half of its draws.

    Args:
        generations: at most.
        children: policies of a generation, on every rank.
        sigma: standard deviation of the deviations at the start.
        separable_above: sites above which variances alone are adapted.
        elites: best policies that are kept.
        report_every: generations between reports.
    """

    def __init__(
        self,
        *,
        generations: Count,
        children: Annotated[Count, Field(ge=4)],
        sigma: Positive,
        separable_above: Natural,
        elites: Count,
        report_every: Count,
        threads: Count,
        polish: Polish | None,
    ) -> None:
        super().__init__(threads=threads, polish=polish)
        self.generations, self.children, self.sigma = generations, children, sigma
        self.separable_above = separable_above
        self.elites, self.report_every = elites, report_every

    def search(self, objective: Objective, run: Run) -> Candidates:
        sites, ratio = len(objective.space), objective.ratios(self.children)
        method = SepCMA if sites > self.separable_above else CMA
        optimizer = method(
            np.zeros(sites),
            self.sigma,
            bounds=np.array([[-1.0, 1.0]] * sites),
            seed=run.rank_seed,
            population_size=self.children,
        )
        best = objective.candidates(objective.starts())
        for generation in range(self.generations):
            asked = [optimizer.ask() for _ in range(self.children)]
            deviation = torch.from_numpy(np.stack(asked)).to(objective.device)
            drawn = objective.policy(deviation, ratio)
            cost = objective.cost(drawn)
            optimizer.tell(list(zip(asked, cost.tolist(), strict=True)))
            best = Candidates.merge(best, Candidates(drawn, cost)).best(self.elites)
            if generation % self.report_every == 0:
                run.tell(generation, predictions(objective, best, drawn, ratio))
            if optimizer.should_stop():
                break
        return best
