"""Expert policies along the ratio: what an agent proposes, improved on the predictor."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppf.agents import Candidates, Objective, Polish


def improve_along(
    objective: Objective,
    knots: Float[Tensor, " knots"],
    proposals: Int[Tensor, "proposals knots sites"],
    polish: Polish,
    tolerance: float,
    generator: torch.Generator,
) -> Int[Tensor, "knots sites"]:
    """One policy a ratio, from the lowest ratio to the highest and back.

    Each ratio's polish starts from the proposals, the allocation rules and the policy of the ratio
    before it. Of those that are as good as the best, within the tolerance, the one nearest to the
    ratio before is taken, so that what lies between two ratios is like both.

    Args:
        proposals: several a ratio.
        tolerance: nats per token.
    """
    experts = proposals[0].clone()
    there = list(range(len(knots)))
    for sweep in (there, there[::-1]):
        before = experts[sweep[0]]
        for place in sweep:
            here = objective.at(float(knots[place]))
            moved = here.project(_moved(here, before), here.ratios(1))
            own = torch.cat([experts[place][None], proposals[:, place], moved])
            start = here.candidates(torch.cat([own, here.starts(), here.ruled()]))
            found = polish.improve(here, start, generator)
            experts[place] = before = _nearest(found, moved[0], tolerance)
    return experts


def _moved(here: Objective, kept: Int[Tensor, " sites"]) -> Float[Tensor, "1 sites"]:
    """A neighbour's policy, scaled so that it costs about what this ratio leaves."""
    space = here.space
    kept = kept.to(here.device)
    stays = 1 - space.saved(kept)
    return kept[None].double() * (1 - here.ratio) / stays.clamp_min(_LEAST)


def _nearest(
    found: Candidates, reference: Int[Tensor, " sites"], tolerance: float
) -> Int[Tensor, " sites"]:
    good = found.kept[found.cost <= found.cost[0] + tolerance]
    return good[(good - reference).abs().sum(1).argmin()]


_LEAST = 1e-9
