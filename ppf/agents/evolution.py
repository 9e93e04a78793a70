"""Evolution on batches of policies: mutations exchange units between sites at a constant budget.

Source: the level-switch mutation of EvoPress (arXiv 2410.14649); here the predictor is the fitness.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from ppf.agents.base import Agent, Candidates, Objective, Report, Run, per_rank, predictions
from ppf.progress import track
from ppf.ranges import Count


@dataclass(kw_only=True)
class Evolution(Agent):
    """Keeps the best distinct policies; children are mutations of them.

    Each rank evolves a population of its own. The runner merges them at the end.

    Args:
        generations: number of generations.
        children: policies of one generation, over all ranks.
        population: best policies that survive a generation.
    """

    generations: Count
    children: Count
    population: Count

    def search(self, objective: Objective, run: Run) -> Candidates:
        generator = run.generator(objective.device)
        start = objective.candidates(objective.starts())
        children = per_rank(self.children, run.fabric)
        return self.improve(objective, start, generator, children, run.log)

    def improve(
        self,
        objective: Objective,
        start: Candidates,
        generator: torch.Generator,
        children: int | None = None,
        report: Report | None = None,
    ) -> Candidates:
        """Evolves the given policies on this rank; see `Polish`.

        Returns the last population and the best of each generation. The policies of the last
        population alone are too similar to each other.
        """
        children = children or self.children
        population, leaders = start.best(self.population), [start]
        for generation in track(range(self.generations), "Evolving policies"):
            parents = torch.randint(
                len(population), (children,), generator=generator, device=objective.device
            )
            drawn = exchange(objective, population.kept[parents], _EXCHANGES, _STEPS, generator)
            born = objective.candidates(drawn)
            merged = Candidates.merge(population, born)
            population = merged.best(self.population)
            leaders.append(merged.best(_LEADERS))
            if report is not None and generation % _REPORTED == 0:
                diversity = population.kept.double().std(0, unbiased=False).mean()  # units
                metrics = predictions(objective, population, drawn, objective.ratios(children))
                report(generation, metrics | {"diversity": diversity})
        return Candidates.merge(population, *leaders)


_LEADERS = 4  # best policies of each generation that are returned
_EXCHANGES = 3  # largest number of exchanges in one child
_STEPS = 2  # most steps that one exchange moves
_REPORTED = 5  # generations between two reports


def exchange(
    objective: Objective,
    kept: Int[Tensor, "batch sites"],
    exchanges: int,
    step: int,
    generator: torch.Generator,
) -> Int[Tensor, "batch sites"]:
    """Mutates policies: moves cost from one random site to another, 1 to `exchanges` times.

    Units of different sites differ in cost, so the result is then projected to the budget. A random
    shift by less than half a unit randomises which sites this projection rounds. The shift alone
    would not change a policy.

    Args:
        exchanges: most exchanges in one child.
        step: most steps that one exchange moves, counted in the site whose units cost more. A step
            is `Space.stride` units.
    """
    batch, sites = kept.shape
    cost = objective.space.cost.to(kept.device).double().clamp_min(1)
    jitter = torch.rand(kept.shape, generator=generator, device=kept.device, dtype=torch.double)
    wanted = kept + 0.98 * (jitter - 0.5)
    stride = objective.space.stride.to(kept.device)
    widest = int(stride.max())
    count = torch.randint(1, exchanges + 1, (batch, 1), generator=generator, device=kept.device)
    for turn in range(exchanges):
        pair = torch.randint(sites, (2, batch, 1), generator=generator, device=kept.device)
        costlier = torch.where(cost[pair[0]] >= cost[pair[1]], *pair)
        most = step * widest
        drawn = torch.randint(most, (batch, 1), generator=generator, device=kept.device)
        moved = 1 + drawn * stride[costlier] // widest
        amount = moved * (turn < count) * cost[pair].amax(0)
        wanted.scatter_add_(1, pair[0], -amount / cost[pair[0]])
        wanted.scatter_add_(1, pair[1], amount / cost[pair[1]])
    return objective.project(wanted, objective.ratios(batch))
