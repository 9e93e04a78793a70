"""Random search, the baseline for all other agents at the same number of evaluations."""

from dataclasses import dataclass

import torch

from ppf.agents.base import ELITES, Agent, Candidates, Objective, Run, per_rank, predictions
from ppf.progress import track
from ppf.ranges import Count


@dataclass(kw_only=True)
class RandomSearch(Agent):
    """Draws the deviation of every site uniformly from the trust region.

    Args:
        evaluations: policies that are drawn, over all ranks.
    """

    evaluations: Count

    def search(self, objective: Objective, run: Run) -> Candidates:
        generator = run.generator(objective.device)
        best = objective.candidates(objective.uniform())
        count = per_rank(self.evaluations, run.fabric)
        batches = range(0, count, _BATCH)
        for step, start in enumerate(track(batches, "Searching on the predictor")):
            shape = (min(count - start, _BATCH), len(objective.space))
            deviation = 2 * torch.rand(shape, generator=generator, device=objective.device) - 1
            ratio = objective.ratios(shape[0])
            drawn = objective.policy(deviation, ratio)
            best = Candidates.merge(best, objective.candidates(drawn)).best(ELITES)
            run.log(step, predictions(objective, best, drawn, ratio))
        return best


_BATCH = 1024  # policies that are drawn and predicted at a time
