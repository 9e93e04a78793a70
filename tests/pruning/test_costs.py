import pytest
import torch
from transformers import PreTrainedConfig

from ppf.pruning import Bank, LivePruner
from ppf.pruning.compensation import NoCompensation
from ppf.pruning.costs import Flops, KVCache, Latency, Params
from tests.checkpoints import CHECKPOINTS, calibrated, random_model, width_space
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


class Counting(Latency):
    """As exact as a clock without noise, for a layer whose every parameter takes a nanosecond."""

    def _seconds(self, run):
        run()
        return 1e-9 * sum(p.numel() for p in run.func.parameters())


@pytest.mark.parametrize("whole_sites", [False, True])
@pytest.mark.parametrize("config", CHECKPOINTS.values(), ids=CHECKPOINTS.keys())
def test_a_units_time_is_the_slope_of_its_layers(
    config: PreTrainedConfig, whole_sites: bool
) -> None:
    lm = random_model(config)
    space = width_space(lm, whole_sites=whole_sites)
    statistics, orders = calibrated(lm)
    pruner = LivePruner(lm, space, Bank.build(lm, space, orders, statistics, NoCompensation()))
    prices = Counting(1, 8, 4, 1).prices(pruner)
    # With nothing left, the consumer's bias stays, but not the norms that its block may hold.
    assert prices == pytest.approx(space.params.tolist(), rel=0.02)
    assert min(Latency(1, 8, 3, 2).prices(pruner)) > 0
    assert pruner.kept == space.dense.tolist()
