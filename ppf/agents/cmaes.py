"""Covariance matrix adaptation (CMA-ES) on the sites' deviations, by the package `cmaes`.

Source: CMA-ES (arXiv 1604.00772); for many sites the separable variant (Ros & Hansen 2008).
"""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from cmaes import CMA, SepCMA
from pydantic import Field

from ppf.agents.base import ELITES, Agent, Candidates, Objective, Run, predictions
from ppf.progress import track
from ppf.ranges import Count, Positive


@dataclass(kw_only=True)
class CMAES(Agent):
    """Adapts mean and covariance of a Gaussian over all sites to the better half of its draws.

    Args:
        generations: largest number of generations.
        children: policies in one generation, on every rank.
        sigma: initial standard deviation, in shares of the trust region.
    """

    generations: Count
    children: Annotated[Count, Field(ge=4)]
    sigma: Positive

    def search(self, objective: Objective, run: Run) -> Candidates:
        sites, ratio = len(objective.space), objective.ratios(self.children)
        method = SepCMA if sites > _SEPARABLE else CMA
        optimizer = method(
            np.zeros(sites),
            self.sigma,
            bounds=np.array([[-1.0, 1.0]] * sites),
            seed=run.rank_seed % 2**32,  # NumPy takes no larger one
            population_size=self.children,
        )
        best = objective.candidates(objective.starts())
        for generation in track(range(self.generations), "Searching on the predictor"):
            asked = [optimizer.ask() for _ in range(self.children)]
            deviation = torch.from_numpy(np.stack(asked)).to(objective.device)
            drawn = objective.policy(deviation, ratio)
            cost = objective.cost(drawn).nan_to_num(torch.inf, torch.inf)
            optimizer.tell(list(zip(asked, cost.tolist(), strict=True)))
            best = Candidates.merge(best, Candidates(drawn, cost)).best(ELITES)
            if generation % _REPORTED == 0:
                run.log(generation, predictions(objective, best, drawn, ratio))
            if optimizer.should_stop():
                break
        return best


_SEPARABLE = 128  # sites above which only variances are adapted: covariances would take too long
_REPORTED = 5  # generations between two reports
