import pytest
import torch

from ppf.pruning import SiteFeatures
from ppf.pruning.costs import Bytes
from ppf.pruning.options import TYPES, Options
from ppf.pruning.rounding_sensitivity import RoundingLosses
from ppf.space import Site, Space

COSTS = {"f16": 32, "q8_0": 17, "q5_0": 11, "q4_0": 9}
SPACE = Space((Site(0, "attention", 3, 1, 640), Site(0, "mlp", 6, 32, 320)))
NOISE = torch.tensor([0.0, 1e-3, 0.05, 0.2])


def losses() -> torch.Tensor:
    """Pruning costs the square of the removed share, rounding a share of the kept units."""
    kept = torch.arange(7) / SPACE.units[:, None]
    pruning = (1 - kept).clamp(min=0).square()
    return pruning[:, None] + NOISE[:, None] * kept[:, None].clamp(max=1)


def options(allowed: tuple[str, ...] = TYPES, prune: bool = True) -> Options:
    return Options.of(SPACE, [1280, 640], losses(), Bytes(allowed, prune))


@pytest.mark.parametrize("prune", [True, False])
@pytest.mark.parametrize("allowed", [TYPES, ("q4_0",), ("q8_0", "q4_0")])
def test_each_step_is_the_best_option_that_its_bytes_pay_for(
    allowed: tuple[str, ...], prune: bool
) -> None:
    found, table = options(allowed, prune), losses()
    for site, steps in enumerate(found.steps):
        units = SPACE.sites[site].units
        every = [
            (kept * COSTS[type], float(table[site, TYPES.index(type), kept]))
            for type in allowed
            for kept in range(0 if prune else units, units + 1)
        ]
        for step in steps[:-1] if "f16" in allowed else steps:
            levels = [0] * 2
            levels[site] = step
            kept, types = found.policy(levels)
            assert kept[site] * COSTS[types[site]] == step
            loss = float(table[site, TYPES.index(types[site]), kept[site]])
            assert loss == min(other for cost, other in every if cost <= step)
        least = min(loss for _, loss in every)
        assert steps[-1] == min(cost for cost, loss in every if loss == least)


def test_features_are_those_of_the_chosen_options() -> None:
    found, noise = options(), NOISE.repeat(2, 1)
    errors = (1 - torch.arange(7) / SPACE.units[:, None]).clamp(min=0)
    units = SiteFeatures(SPACE, errors, 1 - errors, torch.ones(2), errors)
    features = found.features(units, RoundingLosses(losses(), noise))
    for step in found.steps[1]:
        kept, types = found.policy([0, step])
        number = TYPES.index(types[1])
        assert features.losses[1, step] == losses()[1, number, kept[1]]
        error = errors[1, kept[1]]
        assert features.errors[1, step] == pytest.approx(float(error + NOISE[number] * (1 - error)))
    assert features.space is found.space and (features.losses.diff(dim=1) <= 0).all()
