"""Evolution by budget-preserving exchanges between sites, on batches of policies.

Source: the level-switch mutation of EvoPress (arXiv 2410.14649), with a predictor as the fitness.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from ppf.agents.base import (
    Agent,
    Candidates,
    Objective,
    Polish,
    Report,
    Run,
    predictions,
    share,
)
from ppf.ranges import Count


class Evolution(Agent):
    """Keeps a population of distinct policies; children are parents after a few exchanges.

    Ranks are islands: each evolves its own population, and the runner gathers them.

    Args:
        generations: rounds of exchanges.
        children: policies drawn in a generation, over all ranks.
        population: best policies that live on and have children.
        exchanges: most exchanges between two sites in one child.
        step: most units (of the costlier of two sites) that move in one exchange.
        report_every: generations between reports.
    """

    def __init__(
        self,
        *,
        generations: Count,
        children: Count,
        population: Count,
        exchanges: Count,
        step: Count,
        report_every: Count,
        threads: Count,
        polish: Polish | None,
    ) -> None:
        super().__init__(threads=threads, polish=polish)
        self.generations, self.children, self.population = generations, children, population
        self.exchanges, self.step, self.report_every = exchanges, step, report_every

    def search(self, objective: Objective, run: Run) -> Candidates:
        generator = run.generator(objective.device)
        start = objective.candidates(objective.starts())
        children = share(self.children, "children", run.fabric)
        return self._evolve(objective, start, children, generator, run.tell)

    def improve(
        self, objective: Objective, start: Candidates, generator: torch.Generator
    ) -> Candidates:
        """Evolution from given policies, as a polish."""
        return self._evolve(objective, start, self.children, generator, None)

    def _evolve(
        self,
        objective: Objective,
        start: Candidates,
        children: int,
        generator: torch.Generator,
        report: Report | None,
    ) -> Candidates:
        """The best of every generation: the last population is too alike to choose from."""
        population, leaders = start.best(self.population), [start]
        for generation in range(self.generations):
            parents = torch.randint(
                len(population), (children,), generator=generator, device=objective.device
            )
            drawn = exchange(
                objective, population.kept[parents], self.exchanges, self.step, generator
            )
            born = objective.candidates(drawn)
            population = Candidates.merge(population, born).best(self.population)
            leaders.append(population.best(_LEADERS))
            if report is not None and generation % self.report_every == 0:
                diversity = population.kept.double().std(0, unbiased=False).mean()  # units
                metrics = predictions(objective, population, drawn, objective.ratios(children))
                report(generation, metrics | {"diversity": diversity})
        return Candidates.merge(population, *leaders)


_LEADERS = 4  # of each generation are remembered


def exchange(
    objective: Objective,
    kept: Int[Tensor, "batch sites"],
    exchanges: int,
    step: int,
    generator: torch.Generator,
) -> Int[Tensor, "batch sites"]:
    """Children of policies: 1 to `exchanges` times, cost moves from one site to another.

    The projection then meets the budget again (sites differ in the cost of a unit). What it has to
    round falls on sites at random: wishes are jittered by less than half a unit, which by itself
    changes no policy.
    """
    batch, sites = kept.shape
    cost = objective.space.cost.to(kept.device).double().clamp_min(1)
    jitter = torch.rand(kept.shape, generator=generator, device=kept.device, dtype=torch.double)
    wanted = kept + 0.98 * (jitter - 0.5)
    count = torch.randint(1, exchanges + 1, (batch, 1), generator=generator, device=kept.device)
    for turn in range(exchanges):
        pair = torch.randint(sites, (2, batch, 1), generator=generator, device=kept.device)
        moved = torch.randint(1, step + 1, (batch, 1), generator=generator, device=kept.device)
        amount = moved * (turn < count) * cost[pair].amax(0)
        wanted.scatter_add_(1, pair[0], -amount / cost[pair[0]])
        wanted.scatter_add_(1, pair[1], amount / cost[pair[1]])
    return objective.project(wanted, objective.ratios(batch))
