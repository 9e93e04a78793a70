"""Policies that share their first layers are of one group."""

import torch
from hydra.utils import instantiate

from ppf.conf import read_option
from ppf.labels.groups import groups
from tests.agents.synthetic import features, layered


class Context:
    space = layered(30)
    features = features(layered(30))


def test_groups_that_share_layers_are_families() -> None:
    sampler = instantiate(read_option("sampler", "rough"))
    kept = sampler.draw(Context(), 64, torch.Generator().manual_seed(0))
    found = groups(Context.space, kept)
    assert torch.equal(found, found[::4].repeat_interleave(4))
    assert len(found.unique()) == 16


def test_policies_that_keep_the_first_layers_whole_are_no_family() -> None:
    sampler = instantiate(read_option("sampler", "sensitivities"))
    kept = sampler.draw(Context(), 60, torch.Generator().manual_seed(0))
    assert len(groups(Context.space, kept).unique()) == len(kept.unique(dim=0))


def test_first_layers_that_many_policies_share_are_chance() -> None:
    space = layered(4)
    kept = space.dense.repeat(12, 1)
    kept[:, 0], kept[:, -1] = 1, torch.arange(12)
    assert len(groups(space, kept).unique()) == 12
    assert len(groups(space, kept[:4]).unique()) == 1
    twice = groups(space, kept.repeat(2, 1))
    assert torch.equal(twice[:12], twice[12:])
