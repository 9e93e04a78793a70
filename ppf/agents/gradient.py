"""Gradient descent through the predictor on fractional numbers of units, then projection."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import Adam

from ppf.agents.base import ELITES, Agent, Candidates, Objective, Run, predictions
from ppf.errors import PPFError
from ppf.predictor.protocol import Differentiable
from ppf.progress import track
from ppf.ranges import Count, Positive


@dataclass(kw_only=True)
class Gradient(Agent):
    """Parallel descents from random deviations; each step keeps the budget.

    The descents lower the mean prediction. `search.spread_penalty` counts when the rounded policies
    are compared.

    Args:
        descents: number of starting points, on every rank.
        iterations: gradient steps of each descent.
        lr: learning rate of Adam, in shares of the trust region.
    """

    descents: Count
    iterations: Count
    lr: Positive

    def search(self, objective: Objective, run: Run) -> Candidates:
        predictor = objective.predictor
        if not isinstance(predictor, Differentiable):
            raise PPFError(
                f"agent=gradient, the default agent, needs a differentiable predictor, and"
                f" {type(predictor).__name__} is not differentiable: give agent=evolution."
            )
        generator = run.generator(objective.device)
        shape, ratio = (self.descents, len(objective.space)), objective.ratios(self.descents)
        noise = torch.randn(shape, generator=generator, device=objective.device)
        deviation = (_SPREAD * noise).requires_grad_()
        optimizer = Adam([deviation], lr=self.lr)
        best = objective.candidates(objective.starts())
        for iteration in track(range(self.iterations), "Searching on the predictor"):
            optimizer.zero_grad()
            predictor.relaxed(within_budget(objective, deviation)).sum().backward()
            optimizer.step()
            with torch.no_grad():
                deviation.clamp_(-1, 1)  # beyond a bound, the gradient is 0
            if iteration % _ROUNDED == 0:
                drawn = objective.policy(deviation.detach(), ratio)
                best = Candidates.merge(best, objective.candidates(drawn)).best(ELITES)
                run.log(iteration, predictions(objective, best, drawn, ratio))
        last = objective.candidates(objective.policy(deviation.detach(), ratio))
        return Candidates.merge(best, last)


def within_budget(
    objective: Objective, deviation: Float[Tensor, "batch sites"]
) -> Float[Tensor, "batch sites"]:
    """Fractional numbers of kept units that meet the budget, differentiable in the deviations.

    Above the budget, all sites lose the same share of their units; below it, all gain the same
    share. Sites at a bound of the trust region cannot move, so the step is repeated for the others.
    """
    lower, share, upper = (edge.float() for edge in objective.region(objective.ratios(1)))
    units, cost = objective.space.units.to(share), objective.space.cost.to(share)
    reach = torch.where(deviation > 0, upper - share, share - lower)
    wanted = share + deviation * reach
    for _ in range(_CUTS):
        wanted = torch.minimum(torch.maximum(wanted, lower), upper)
        over = ((wanted - share) @ cost)[:, None]
        free = torch.where(over > 0, wanted > lower, wanted < upper) & (cost > 0)
        wanted = wanted - free * units * over / (free * units * cost).sum(1, True).clamp_min(1)
    return torch.minimum(torch.maximum(wanted, lower), upper)


_SPREAD = 0.3  # standard deviation of the starting points, in shares of the trust region
_ROUNDED = 10  # gradient steps between two roundings to whole units
_CUTS = 8  # repetitions, after which the remaining excess is negligible
