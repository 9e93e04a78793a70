"""Random search, the floor that a search has to beat at equal evaluations."""

import torch

from ppf.agents.base import (
    Agent,
    Candidates,
    Objective,
    Polish,
    Run,
    predictions,
    share,
)
from ppf.ranges import Count


class Random(Agent):
    """Draws every site's deviation evenly from the trust region.

    Args:
        evaluations: policies drawn, over all ranks.
        batch: policies drawn at a time.
        elites: best policies that are kept.
    """

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
        left, step = share(self.evaluations, "evaluations", run.fabric), 0
        while left > 0:
            shape = (min(left, self.batch), len(objective.space))
            deviation = 2 * torch.rand(shape, generator=generator, device=objective.device) - 1
            ratio = objective.ratios(shape[0])
            drawn = objective.policy(deviation, ratio)
            best = Candidates.merge(best, objective.candidates(drawn)).best(self.elites)
            run.tell(step, predictions(objective, best, drawn, ratio))
            left, step = left - shape[0], step + 1
        return best
