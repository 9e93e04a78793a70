"""Policies of neighbouring ratios: scaled from one to the next, and improved along all of them."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppf.agents import Candidates, Objective, Polish
from ppf.progress import track

_TOLERANCE = 0.002  # largest predicted loss above the lowest at a ratio, nats per token
_LEAST = 1e-9  # avoids a division by zero


def improve_along(
    objective: Objective,
    ratios: Float[Tensor, " points"],
    proposals: Int[Tensor, "proposals points sites"],
    polish: Polish,
    generator: torch.Generator,
) -> Int[Tensor, "points sites"]:
    """Finds one policy for each ratio, from the lowest ratio to the highest and back.

    The local search at a ratio starts from its proposals, the allocation rules, and the policy of
    the previous ratio. Of all policies within 0.002 nats of the best cost, the one that is most
    similar to the previous policy is chosen. Interpolated policies then resemble both neighbours.

    Args:
        ratios: ascending.
        proposals: starting policies, several for each ratio.
        polish: local search on the predictor.
    """
    policies = proposals[0].clone()
    there, before = list(range(len(ratios))), policies[0]
    for place in track([*there, *there[::-1]], "Improving the policy of each ratio"):
        here = objective.at(float(ratios[place]))
        scaled = here.project(moved(here, before), here.ratios(1))
        own = torch.cat([policies[place][None], proposals[:, place], scaled])
        start = here.candidates(torch.cat([own, here.starts(), here.rule_policies()]))
        found = polish.improve(here, start, generator)
        policies[place] = before = _nearest(found, scaled[0])
    return policies


def moved(here: Objective, kept: Int[Tensor, " sites"]) -> Float[Tensor, "1 sites"]:
    """The policy of a neighbouring ratio; what each site removes is scaled to this ratio."""
    units = here.space.units.to(here.device).double()
    kept = kept.to(here.device)
    scale = here.ratio / here.space.saved(kept).clamp_min(_LEAST)
    return (units - (units - kept) * scale)[None]


def _nearest(found: Candidates, reference: Int[Tensor, " sites"]) -> Int[Tensor, " sites"]:
    """Of the policies within the tolerance, the most similar to the reference."""
    good = found.kept[found.cost <= found.cost[0] + _TOLERANCE]
    return good[(good - reference).abs().sum(1).argmin()]
