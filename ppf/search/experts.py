"""Expert policies for many ratios: an agent's proposals, improved on the predictor."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ppf.agents import Candidates, Objective, Polish
from ppf.progress import track


def improve_along(
    objective: Objective,
    knots: Float[Tensor, " knots"],
    proposals: Int[Tensor, "proposals knots sites"],
    polish: Polish,
    tolerance: float,
    generator: torch.Generator,
) -> Int[Tensor, "knots sites"]:
    """Finds one policy for each ratio, from the lowest ratio to the highest and back.

    The polish at a ratio starts from its proposals, the allocation rules, and the policy of the
    previous ratio. Of all policies within the tolerance of the best cost, the one that is most
    similar to the previous policy is chosen. Interpolated policies then resemble both neighbours.

    Args:
        knots: the ratios, ascending.
        proposals: starting policies, several for each ratio.
        polish: local search on the predictor.
        tolerance: largest cost above the best, nats per token.
    """
    experts = proposals[0].clone()
    there, before = list(range(len(knots))), experts[0]
    for place in track([*there, *there[::-1]], "Improving the policy of each ratio"):
        here = objective.at(float(knots[place]))
        scaled = here.project(moved(here, before), here.ratios(1))
        own = torch.cat([experts[place][None], proposals[:, place], scaled])
        start = here.candidates(torch.cat([own, here.starts(), here.rule_policies()]))
        found = polish.improve(here, start, generator)
        experts[place] = before = _nearest(found, scaled[0], tolerance)
    return experts


def searched_ratios(interval: Sequence[float], count: int) -> Float[Tensor, " count"]:
    """Ratios of the searches of `mode=chain`: evenly spaced over an interval, ascending."""
    low, high = interval
    ratios = torch.linspace(low, high, count, dtype=torch.double)
    ratios[1:-1] = ratios[1:-1].round(decimals=6)  # so that ratio=0.15 is one of them
    return ratios


def measured_experts(number: int, stride: int, knots: int) -> slice:
    """The experts that are measured after round `number`: every stride-th one, at least one.

    Consecutive rounds start at different experts, so they measure different ones.
    """
    stride = min(stride, knots)
    return slice(number % stride, None, stride)


def moved(here: Objective, kept: Int[Tensor, " sites"]) -> Float[Tensor, "1 sites"]:
    """The policy of a neighbouring ratio; what each site removes is scaled to this ratio."""
    units = here.space.units.to(here.device).double()
    kept = kept.to(here.device)
    scale = here.ratio / here.space.saved(kept).clamp_min(_LEAST)
    return (units - (units - kept) * scale)[None]


def _nearest(
    found: Candidates, reference: Int[Tensor, " sites"], tolerance: float
) -> Int[Tensor, " sites"]:
    """Of the policies within the tolerance, the most similar to the reference."""
    good = found.kept[found.cost <= found.cost[0] + tolerance]
    return good[(good - reference).abs().sum(1).argmin()]


_LEAST = 1e-9  # avoids a division by zero
