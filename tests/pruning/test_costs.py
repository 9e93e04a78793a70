import pytest
import torch

from ppf.llm import LanguageModel
from ppf.pruning.costs import Flops, KVCache, Latency, Params
from tests.checkpoints import CHECKPOINTS, each, pruner_of, random_model
from tests.tiny import TinySetup, tiny_setup


def test_params_equal_the_space(tiny: TinySetup) -> None:
    assert Params().prices(tiny.pruner()) == tiny.space.params.tolist()


def test_flops_count_two_per_weight_plus_attention(tiny: TinySetup) -> None:
    prices = Flops(100).prices(tiny.pruner())
    queries, head = 2, 8  # heads of a group, and their size
    scores = 2 * 2 * 100 * queries * head  # products with keys and values
    assert prices[0] == 2 * tiny.space.sites[0].params + scores
    assert prices[1] == 2 * tiny.space.sites[1].params


@pytest.mark.parametrize("space", ["width", "depth"])
def test_the_kv_cache_counts_keys_and_values(cache: str, space: str) -> None:
    tiny = tiny_setup(cache, space)
    filled = tiny.lm.model(tiny.windows, use_cache=True).past_key_values
    held = sum(
        t.numel() * t.element_size() for layer in filled.layers for t in (layer.keys, layer.values)
    )
    prices = torch.tensor(KVCache().prices(tiny.pruner()))
    assert (prices * tiny.space.units).sum() == held / tiny.windows.numel()
    assert (prices[1::2] == 0).all()


class Counting(Latency):
    """A clock without noise: every parameter of a layer takes one nanosecond."""

    def _seconds(self, run):
        run()
        return 1e-9 * sum(p.numel() for p in run.func.parameters())


@each("name")
def test_the_price_is_the_slope_of_the_layer_time(name: str) -> None:
    for whole_sites in {False, name == "llama-biases"}:
        pruner = pruner_of(random_model(CHECKPOINTS[name]), whole_sites=whole_sites)
        space = pruner.space
        # An empty block keeps the consumer's bias, but not the norms inside the block.
        for price, site in zip(Counting(1, 8).prices(pruner), space.sites, strict=True):
            assert price == pytest.approx(site.price, rel=0.02)
        assert pruner.kept == space.dense.tolist()


def test_a_real_clock_gives_prices(lm: LanguageModel) -> None:
    pruner = pruner_of(lm)
    assert pruner.space.priced("latency", Latency(1, 8).prices(pruner)).cost.min() > 0
