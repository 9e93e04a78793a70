from types import SimpleNamespace

import pytest
import torch
from hydra.utils import instantiate

from ppf.labels.collect import draw
from ppf.labels.samplers import FromRules, Profiles, Sampler, SharedPrefix, SingleSite
from ppf.pruning.allocation import FLAP, Uniform
from ppf.space import uniform
from tests.agents.synthetic import layered
from tests.composing import command_config
from tests.tiny import TinySetup


def drawn(sampler: Sampler, tiny: TinySetup, count: int) -> torch.Tensor:
    return sampler.draw(tiny, count, torch.Generator().manual_seed(0))


def test_single_site_policies_empty_every_site_once_in_two_passes(tiny: TinySetup) -> None:
    sites, size = len(tiny.space), 3
    turns = range(-(-2 * sites // size))
    kept = torch.cat(
        [SingleSite().draw(tiny, size, torch.Generator().manual_seed(t), t) for t in turns]
    )[: 2 * sites]
    narrowed = (kept != tiny.space.units).sum(0)
    assert (narrowed == 2).all()
    assert (kept == 0).any(0).all()


def test_rules_are_drawn_in_turn_within_their_ratios(tiny: TinySetup) -> None:
    rules = FromRules({"uniform": Uniform(), "flap": FLAP()}, ratio=[0.2, 0.4])
    kept = drawn(rules, tiny, 10)
    ratio = tiny.space.ratio(kept)
    assert ratio.min() >= 0.2 and ratio.max() < 0.45
    is_uniform = (kept == uniform(tiny.space, ratio)).all(1)
    assert is_uniform.sum() == 5
    kept = torch.cat([rules.draw(tiny, 1, torch.Generator().manual_seed(0), t) for t in (0, 1)])
    is_uniform = (kept == uniform(tiny.space, tiny.space.ratio(kept))).all(1)
    assert is_uniform.tolist() == [True, False], "the second draw continues after the first"


def test_groups_share_the_first_layers_of_their_first_policy(tiny: TinySetup) -> None:
    profiles = Profiles(ratio=[0.1, 0.5], spread=[0.05, 0.3], smooth=0.5)
    kept = drawn(SharedPrefix(profiles), tiny, 12)
    groups = kept.unflatten(0, (-1, 4))
    for member, layer in ((1, 1), (2, 2), (3, 3)):
        here = [site.layer == layer for site in tiny.space.sites]
        assert (groups[:, member, here] != groups[:, 0, here]).any()
    first = torch.tensor([site.layer for site in tiny.space.sites])
    assert kept.unique(dim=0).shape[0] > 8
    for group in kept.split(4):
        for member, layers in zip(group[1:], (1, 2, 3), strict=True):
            assert torch.equal(member[first < layers], group[0][first < layers])


def test_policies_that_share_layers_are_pruned_evenly_at_every_ratio_and_depth() -> None:
    """Small draws, as `collect` makes them: a group then spans a wide range of ratios."""
    sampler = instantiate(command_config("collect", ["sampler=rough"]).sampler)
    deep = SimpleNamespace(space=layered(40))
    draws = [sampler.draw(deep, 12, torch.Generator().manual_seed(seed)) for seed in range(60)]
    kept = torch.cat(draws)
    counts = torch.histc(deep.space.ratio(kept).float(), bins=6, min=0.02, max=0.6)
    assert counts.min() > 0.8 * len(kept) / 6
    removed = (1 - kept / deep.space.units)[:, 1::2].unflatten(1, (4, -1)).mean(2)  # of the MLPs
    for member in range(4):
        assert removed[member::4].mean(0).std() < 0.02


@pytest.mark.parametrize("name", ["rough", "smooth", "sensitivities", "rules", "mixture"])
def test_a_draw_is_distinct_reproducible_and_starts_dense(tiny: TinySetup, name: str) -> None:
    sampler = instantiate(command_config("collect", [f"sampler={name}"]).sampler)
    first, second = draw(tiny, sampler, 32, seed=1), draw(tiny, sampler, 32, seed=1)
    assert torch.equal(first, second)
    assert first[0].tolist() == tiny.space.dense.tolist()
    assert len({tuple(k) for k in first.tolist()}) == len(first) > 15
    assert not torch.equal(first, draw(tiny, sampler, 32, seed=2))
    assert torch.equal(draw(tiny, sampler, 100, seed=1)[: len(first)], first)
