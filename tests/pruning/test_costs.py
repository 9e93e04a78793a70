import torch

from ppf.pruning.costs import Flops, KVCache, Latency, Params
from tests.tiny import TinySetup


def test_parameters_are_those_of_the_space(tiny: TinySetup) -> None:
    assert Params().prices(tiny.pruner()) == tiny.space.params.tolist()


def test_flops_are_two_a_weight_and_attention_over_the_context(tiny: TinySetup) -> None:
    prices = Flops(100).prices(tiny.pruner())
    queries, head = 2, 8  # heads of a group, and their size
    scores = 2 * 2 * 100 * queries * head  # products with keys and values
    assert prices[0] == 2 * tiny.space.sites[0].params + scores
    assert prices[1] == 2 * tiny.space.sites[1].params


def test_the_kv_cache_holds_keys_and_values_of_each_group(tiny: TinySetup) -> None:
    cache = tiny.lm.model(tiny.windows, use_cache=True).past_key_values
    held = sum(
        t.numel() * t.element_size() for layer in cache.layers for t in (layer.keys, layer.values)
    )
    prices = torch.tensor(KVCache().prices(tiny.pruner()))
    assert (prices * tiny.space.units).sum() == held / tiny.windows.numel()
    assert (prices[1::2] == 0).all()


def test_latency_is_positive_and_alike_for_a_kind(tiny: TinySetup) -> None:
    pruner = tiny.pruner()
    prices = Latency(batch=1, window=32, widths=3, repeats=3).prices(pruner)
    assert min(prices) > 0 and len(set(prices[::2])) == len(set(prices[1::2])) == 1
    assert pruner.kept == tiny.space.dense.tolist()


def test_wider_blocks_take_longer(tiny: TinySetup) -> None:
    class Counting(Latency):
        def _seconds(self, block, inputs, keywords):  # as exact as a clock without noise
            return 1e-6 * sum(p.numel() for p in block.parameters())

    space = tiny.space
    prices = torch.tensor(Counting(1, 8, 4, 1).prices(tiny.pruner()))
    assert torch.allclose(prices.double(), 1e3 * space.params.double(), rtol=1e-3)
