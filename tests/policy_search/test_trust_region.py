import pytest
import torch
from torch import Tensor

from ppf.policy_search.trust_region import TrustRegion
from ppf.policy_search.verify import Verification


def verified(measured: Tensor) -> Verification:
    kept = torch.arange(len(measured))[:, None]
    names = (("uniform",), *[("candidate",)] * (len(measured) - 1))
    return Verification(
        names, kept, torch.full_like(measured, 3.5), torch.full_like(measured, 0.1), measured
    )


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
    region.update(verified(torch.tensor(measured)))
    assert region.radius == pytest.approx(radius)


def test_a_round_without_a_new_policy_widens_the_region_up_to_the_whole_space() -> None:
    region = TrustRegion(0.4)
    radii = []
    for _ in range(3):
        region.update(verified(torch.tensor([3.5])))
        radii.append(region.radius)
    assert radii == pytest.approx([0.68, 1.0, 1.0])
