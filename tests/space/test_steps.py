import pytest
import torch

from ppf.space import Site, SteppedSpace, project, uniform

SITES = tuple(Site(layer, kind, 40, 1, price) for layer in range(4) for kind, price in
              (("attention", 7), ("mlp", 3)))  # fmt: skip
STEPS = ((0, 9, 11, 17, 32, 40), (0, 5, 8, 20, 21, 30, 37))
SPACE = SteppedSpace(SITES, "width", "bytes", steps=STEPS * 4)
RATIO = torch.linspace(0, 0.9, 200).double()


def drawn() -> torch.Tensor:
    return 40 * torch.rand(200, 8, generator=torch.Generator().manual_seed(0)).double()


def test_policies_keep_steps_and_no_further_step_fits() -> None:
    kept = project(SPACE, drawn(), RATIO)
    for row, ratio in zip(kept.tolist(), RATIO.tolist(), strict=True):
        assert all(k in steps for k, steps in zip(row, SPACE.steps, strict=True))
        room = (1 - ratio) * SPACE.total - sum(
            k * site.params for k, site in zip(row, SITES, strict=True)
        )
        assert room > -1e-6
        prices = [
            (min(s for s in steps if s > k) - k) * site.params
            for k, steps, site in zip(row, SPACE.steps, SITES, strict=True)
            if k < steps[-1]
        ]
        assert all(price > room for price in prices)


def test_policies_stay_within_the_bounds_lowered_to_steps() -> None:
    lower, upper = torch.full((200, 8), 8), torch.full((200, 8), 32)
    kept = project(SPACE, drawn(), torch.full((200,), 0.5).double(), (lower, upper))
    assert (kept <= 32).all() and (kept[:, 1::2] >= 8).all()
    assert (kept[:, ::2] == 0).any()  # 8 is no step of these sites


def test_sites_without_small_steps_keep_their_smallest() -> None:
    space = SteppedSpace(SITES, "width", "bytes", steps=((9, 17, 32),) * 8)
    kept = project(space, drawn(), torch.full((200,), 0.7).double())
    assert kept.amin() >= 9 and kept.amax() <= 32
    assert (space.saved(kept) >= 0.7).all()


@pytest.mark.parametrize("ratio", [0.3, 0.6])
def test_uniform_policies_differ_by_little_more_than_a_step(ratio: float) -> None:
    kept = uniform(SPACE, torch.tensor([ratio]).double())[0]
    assert SPACE.saved(kept) >= ratio
    assert (kept - 40 * (1 - ratio)).abs().max() <= 16
