"""Intervals are calibrated on earlier proposals, and the trust region grows where they hold."""

import math
from dataclasses import replace

import pytest
import torch

from ppf.policy_search.intervals import calibrated, promised_gain
from ppf.policy_search.trust_region import TrustRegion
from ppf.policy_search.verify import Verification


def verified(error: torch.Tensor, std: float = 0.1) -> Verification:
    names = (("uniform",), *[("candidate",)] * (len(error) - 1))
    mean = torch.full_like(error, 3.0)
    kept = torch.arange(len(error))[:, None]
    return Verification(names, kept, mean, torch.full_like(error, std), mean + error)


def test_the_first_round_has_the_predictors_own_intervals() -> None:
    (only,) = calibrated([verified(torch.tensor([0.0, 0.9, 0.9]))])
    assert torch.equal(only.std, torch.full((3,), 0.1))


def test_wide_errors_of_earlier_rounds_widen_and_small_ones_narrow() -> None:
    wide, small = torch.tensor([9.0, 0.3, -0.3]), torch.zeros(15)  # uniform does not count
    rounds = calibrated([verified(wide), verified(small), verified(small)])
    assert float(rounds[1].std[0]) == pytest.approx(0.1 * 3 / 1.645, rel=1e-3)
    # Of 16 errors and the four of the predictor, the 19th smallest counts: 3.
    assert float(rounds[2].std[0]) == pytest.approx(0.1 * 3 / 1.645, rel=1e-3)
    rounds = calibrated([verified(small), verified(small), verified(small)])
    assert [float(r.std[0]) for r in rounds] == pytest.approx([0.1, 0.1, 0.05], rel=1e-3)
    assert torch.equal(rounds[1].measured, verified(small).measured)


def test_intervals_hold_on_later_proposals() -> None:
    generator = torch.Generator().manual_seed(0)
    held = []
    for _ in range(200):
        rounds = [verified(0.25 * torch.randn(21, generator=generator)) for _ in range(3)]
        last = calibrated(rounds)[-1]
        error = (last.measured - last.mean).abs()
        held.append((error <= 1.645 * last.std)[1:].double().mean())
    assert 0.85 <= float(torch.stack(held).mean()) <= 0.95


def test_a_promise_is_what_the_calibrated_intervals_of_new_proposals_allow() -> None:
    done = [verified(torch.tensor([0.2, 0.0, 0.3]))]  # uniform, best, and an error of three std
    predicted = replace(verified(torch.full((3,), torch.nan)), mean=torch.tensor([0.0, 3.1, 3.2]))
    low = 3.1 - 0.1 * 3  # uniform is no proposal; at 3 the lowest loss was measured
    assert promised_gain(done, predicted) == pytest.approx(1 - math.exp(low - 3.0), rel=1e-3)
    hopeless = replace(predicted, mean=torch.full((3,), 2000.0))
    assert promised_gain(done, hopeless) == -math.inf
    exact = replace(predicted, std=torch.zeros(3))
    for nothing_new in (exact, replace(predicted, names=(("uniform",),) * 3)):
        assert promised_gain(done, nothing_new) == math.inf


@pytest.mark.parametrize(
    ("measured", "radius"),
    [
        ([9.0, 3.49, 3.6, 3.55], 0.68),  # uniform does not count
        ([3.6, 3.45, 3.6, 3.55], 0.68),
        ([3.6, 3.49, 3.8, 3.9], 0.4),  # intervals do not hold
        ([3.6, 3.49, torch.inf, torch.nan], 0.4),
    ],
)
def test_the_region_widens_if_intervals_hold(measured: list[float], radius: float) -> None:
    region = TrustRegion(0.4)
    region.update(verified(torch.tensor(measured) - 3.5))
    assert region.radius == pytest.approx(radius)


def test_a_round_without_a_new_policy_widens_the_region_up_to_the_whole_space() -> None:
    region = TrustRegion(0.4)
    radii = []
    for _ in range(3):
        region.update(verified(torch.zeros(1)))
        radii.append(region.radius)
    assert radii == pytest.approx([0.68, 1.0, 1.0])
