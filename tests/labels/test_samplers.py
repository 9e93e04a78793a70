import torch

from ppf.labels.collect import draw
from ppf.labels.samplers import Mixture, Profiles, Sensitivities
from ppf.space import Space
from tests.tiny import TinySetup


def profiles() -> Profiles:
    return Profiles(ratio=[0.1, 0.5], spread=[0.05, 0.3], smooth=0.5)


def test_profiles_cover_the_ratios_evenly(tiny: TinySetup) -> None:
    kept = profiles().draw(tiny.space, 40, torch.Generator().manual_seed(0))
    ratio = tiny.space.ratio(kept)
    counts = torch.histc(ratio.float(), bins=4, min=0.1, max=0.52)
    assert ratio.min() >= 0.1 and (counts >= 7).all()


def test_sensitivities_narrow_one_site_each(tiny: TinySetup) -> None:
    kept = Sensitivities().draw(tiny.space, 20, torch.Generator().manual_seed(0))
    changed = kept != tiny.space.units
    assert (changed.sum(1) == 1).all() and changed.any(0).all()


def test_a_draw_is_distinct_reproducible_and_starts_dense(tiny: TinySetup) -> None:
    mixture = Mixture(
        {"profiles": profiles(), "single": Sensitivities()}, {"profiles": 3.0, "single": 1.0}
    )
    space: Space = tiny.space
    first, second = draw(space, mixture, 32, seed=1), draw(space, mixture, 32, seed=1)
    assert torch.equal(first, second)
    assert first[0].tolist() == space.dense.tolist()
    assert len({tuple(k) for k in first.tolist()}) == len(first) > 24
    assert not torch.equal(first, draw(space, mixture, 32, seed=2))
    assert torch.equal(draw(space, mixture, 100, seed=1)[: len(first)], first)
