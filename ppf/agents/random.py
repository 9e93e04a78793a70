"""Random search, the baseline for all other agents at the same number of evaluations."""

from typing import ClassVar

import torch

from ppf.agents.base import (
    Agent,
    Candidates,
    Objective,
    Polish,
    Run,
    per_rank,
    predictions,
)
from ppf.progress import track
from ppf.ranges import Count


class RandomSearch(Agent):
    """Draws the deviation of every site uniformly from the trust region.

    Args:
        evaluations: policies that are drawn, over all ranks.
        batch: policies that are drawn and predicted at a time.
        elites: best policies that are kept.
        threads: see `Agent`.
        polish: see `Agent`.
    """

    shared: ClassVar[str | None] = "evaluations"

    def __init__(
        self,
        *,
        evaluations: Count,
        batch: Count,
        elites: Count,
        threads: Count,
        polish: Polish | None,
    ) -> None:
        super().__init__(threads=threads, polish=polish)
        self.evaluations, self.batch, self.elites = evaluations, batch, elites

    def search(self, objective: Objective, run: Run) -> Candidates:
        generator = run.generator(objective.device)
        best = objective.candidates(objective.uniform())
        count = per_rank(self.evaluations, "evaluations", run.fabric)
        batches = range(0, count, self.batch)
        for step, start in enumerate(track(batches, "Searching on the predictor")):
            shape = (min(count - start, self.batch), len(objective.space))
            deviation = 2 * torch.rand(shape, generator=generator, device=objective.device) - 1
            ratio = objective.ratios(shape[0])
            drawn = objective.policy(deviation, ratio)
            best = Candidates.merge(best, objective.candidates(drawn)).best(self.elites)
            run.log(step, predictions(objective, best, drawn, ratio))
        return best
