import itertools
from dataclasses import replace

import pytest
import torch

from ppf.errors import PPFError
from ppf.space import Prunable, Space, build_space, project, uniform

KEYS = {"name": "stock", "channel_multiple": 64, "whole_sites": False, "stock": True}


def space_of(layers: int, kinds: tuple[str, ...] = ("attention", "mlp")) -> Space:
    blocks = [("attention", 3, 700), ("mlp", 6 * 64, 3)]
    prunables = [Prunable(layer, *block) for layer in range(layers) for block in blocks]
    return build_space(prunables, kinds=kinds, **KEYS)


def every_policy(space: Space) -> list[list[int]]:
    """All policies with equal layers, of which at least one stays."""
    found = []
    shapes = [range(1, int(n) + 1) for n in space.units[: len(space.kinds)]]
    layers = len(space) // len(space.kinds)
    sets = itertools.product([False, True], repeat=layers) if len(shapes) > 1 else [[True] * layers]
    for stay, shape in itertools.product(sets, itertools.product(*shapes)):
        if any(stay):
            found.append([k for here in stay for k in (shape if here else [0] * len(shape))])
    return found


@pytest.mark.parametrize("kinds", [("attention", "mlp"), ("mlp",)])
def test_the_nearest_policy_of_equal_layers_that_uses_the_budget_is_found(
    kinds: tuple[str, ...],
) -> None:
    space = space_of(4, kinds)
    every = torch.tensor(every_policy(space))
    noise = torch.randn(60, len(space), generator=torch.Generator().manual_seed(0))
    ratio = torch.linspace(0, 0.6, 60).double()
    wanted = (1 - ratio[:, None]) * space.units * (1 + 0.5 * noise)
    kept = project(space, wanted, ratio)
    nearest = 0
    for row, target, found in zip(wanted, ratio, kept, strict=True):
        assert found.tolist() in every.tolist()
        assert space.ratio(found) >= target - 1e-9
        allowed = every[space.ratio(every) >= target - 1e-9]
        more = allowed.clone()
        last = slice(len(kinds) - 1, None, len(kinds))
        more[:, last] += more[:, last] > 0
        full = (more > space.units).any(1) | (
            space.ratio(more.minimum(space.units)) < target - 1e-9
        )
        apart = ((row - allowed[full]) / space.units).square().sum(1)
        own = ((row - found) / space.units).square().sum()
        assert own <= apart.min() + 0.3
        nearest += bool(own <= apart.min() + 1e-9)
    assert nearest > 50  # layers are removed in one order, whatever the widths


def test_uniform_policies_remove_no_layer() -> None:
    kept = uniform(space_of(6), torch.tensor([0.1, 0.3]).double())
    assert (kept > 0).all() and (kept.view(2, 6, 2) == kept.view(2, 6, 2)[:, :1]).all()


def test_what_cannot_have_equal_layers_is_refused() -> None:
    for other in (Prunable(1, "mlp", 64, 3), Prunable(1, "experts", 2, 192)):
        with pytest.raises(PPFError, match="needs a model of equal layers"):
            build_space([Prunable(0, "mlp", 128, 3), other], kinds=["mlp"], **KEYS)
    heads = [Prunable(0, "attention", 2, 900, 2, 100)]
    for more in ({"query_heads": True}, {}):
        with pytest.raises(PPFError, match=r"space\.query_heads=false, and mlp in"):
            build_space(heads, kinds=["attention"], **more, **KEYS)


def test_only_numbers_of_heads_that_the_class_allows() -> None:
    block = Prunable(0, "attention", 3, 700, equal=(1, 3))
    blocks = [replace(x, layer=i) for i in range(4) for x in (block, Prunable(0, "mlp", 384, 3))]
    space = build_space(blocks, kinds=["attention", "mlp"], **KEYS)
    ratio = torch.linspace(0.1, 0.8, 40).double()
    kept = project(space, torch.tensor([[2.0, 4.0] * 4]).repeat(40, 1), ratio)
    assert {*kept[:, ::2].flatten().tolist()} <= {0, 1, 3}
    assert Space.restore(space.describe()) == space


def test_blocks_that_the_budget_does_not_count_stay_whole() -> None:
    space = space_of(4).priced("kv", [700, 0] * 4)
    kept = uniform(space, torch.tensor([0.0, 0.3]).double())
    assert kept.tolist() == [[3, 6] * 4, [2, 6] * 4]
    with pytest.raises(PPFError, match=r"no model of equal layers saves 0.95"):
        uniform(space, torch.tensor([0.3, 0.95]).double())
