import copy
import inspect
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedConfig, StaticCache

from ppf.evaluation.size import parameters
from ppf.llm import LanguageModel
from ppf.pruning import LivePruner, Statistics
from ppf.pruning.compensation import Bias, LeastSquares, LeastSquaresWithoutBias, NoCompensation
from ppf.pruning.rounding import BLOCK_BYTES, rounded
from ppf.records.values import NumberFormat
from tests.checkpoints import (
    CHECKPOINTS,
    FAMILIES,
    calibrated,
    dropped_columns,
    each,
    mask_routers,
    policies,
    pruner_of,
    random_model,
    random_windows,
)
from tests.tiny import TinySetup

DAMPING = 0.01
COMPENSATIONS = {
    "none": NoCompensation(),
    "bias": Bias(),
    "least_squares": LeastSquares(damping=DAMPING, refit_damping=DAMPING),
    "least_squares_without_bias": LeastSquaresWithoutBias(DAMPING, refit_damping=DAMPING),
}

family = pytest.mark.parametrize("config", FAMILIES.values(), ids=FAMILIES.keys())
compensated = pytest.mark.parametrize("name", COMPENSATIONS)


def zeroed(consumer: nn.Linear, gone: Tensor, gram: Tensor, mean: Tensor) -> None:
    consumer.weight[:, gone] = 0


def mean_in_bias(consumer: nn.Linear, gone: Tensor, gram: Tensor, mean: Tensor) -> None:
    lost = consumer.weight[:, gone] @ mean[gone]
    bias = lost if consumer.bias is None else consumer.bias + lost
    consumer.bias = nn.Parameter(bias, requires_grad=False)
    consumer.weight[:, gone] = 0


def refitted(consumer: nn.Linear, gone: Tensor, gram: Tensor, mean: Tensor) -> None:
    if not len(gone):
        return
    stay = torch.ones(len(gram), dtype=torch.bool)
    stay[gone] = False
    weight, mean = consumer.weight.double(), mean.double()
    covariance = gram.double() - torch.outer(mean, mean)
    # The ridge is a fraction of the usual variance; rounding errors of float32 moments are added.
    usual = covariance.diagonal().topk(len(gram) - len(gram) // 100, largest=False).values
    ridge = DAMPING * usual.mean() + 1e-6 * gram.diagonal().double()
    # Ridge regression of what the removed columns add, on the columns that stay.
    lost = weight[:, gone] @ covariance[gone][:, stay]
    ridged = covariance[stay][:, stay] + ridge[stay].diag()
    added = torch.linalg.solve(ridged, lost, left=False)
    shift = (weight[:, gone] @ mean[gone] - added @ mean[stay]).float()
    consumer.weight[:, stay] += added.float()
    consumer.weight[:, gone] = 0
    bias = shift if consumer.bias is None else consumer.bias + shift
    consumer.bias = nn.Parameter(bias, requires_grad=False)


def refitted_without_mean(consumer: nn.Linear, gone: Tensor, gram: Tensor, mean: Tensor) -> None:
    refitted(consumer, gone, gram, torch.zeros_like(mean))


REFERENCES: dict[str, Callable[[nn.Linear, Tensor, Tensor, Tensor], None]] = {
    "none": zeroed,
    "bias": mean_in_bias,
    "least_squares": refitted,
    "least_squares_without_bias": refitted_without_mean,
}


def reference(
    dense: nn.Module, pruner: LivePruner, statistics: Statistics, kept: list[int], name: str
) -> nn.Module:
    """A copy of the dense model with masked weights and textbook compensation."""
    model = copy.deepcopy(dense)
    columns = dropped_columns(model, pruner.space, pruner.bank.orders, kept)
    parts = zip(pruner.lm.couplings, columns, statistics.gram, statistics.mean, strict=True)
    for coupling, (consumer, gone), gram, mean in parts:
        silent = len(gone) == len(gram) and pruner.lm.adapter.norm_behind(coupling)
        REFERENCES["none" if silent else name](consumer, gone, gram, mean)
    mask_routers(model, pruner.space, pruner.bank.orders, kept)
    return model


@each("config")
@pytest.mark.parametrize("name", list(COMPENSATIONS)[1:])
def test_live_logits_equal_those_of_a_masked_and_compensated_model(
    config: PreTrainedConfig, name: str
) -> None:
    lm, ids = random_model(config), random_windows()
    dense = copy.deepcopy(lm.model)
    statistics, _ = calibrated(lm)
    pruner = pruner_of(lm, COMPENSATIONS[name], query_heads=False)
    for kept in policies(pruner.space).values():
        expected = reference(dense, pruner, statistics, kept, name)(ids).logits
        with pruner.at(kept) as model:
            torch.testing.assert_close(model(ids).logits, expected, atol=1e-4, rtol=1e-4)
            assert pruner.parameters(kept) == parameters(model)


@family
@compensated
def test_the_next_policy_and_restore_undo_the_last_policy_bit_by_bit(
    config: PreTrainedConfig, name: str
) -> None:
    lm, ids = random_model(config), random_windows()
    before, logits = copy.deepcopy(lm.model.state_dict()), lm.model(ids).logits
    pruner = pruner_of(lm, COMPENSATIONS[name])
    drawn = policies(pruner.space)
    pruner.apply(drawn["random"])
    first = lm.model(ids).logits
    for kept in [*drawn.values(), drawn["random"]]:
        pruner.apply(kept)
    assert torch.equal(lm.model(ids).logits, first)
    pruner.restore()
    after = lm.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert torch.equal(lm.model(ids).logits, logits)


@pytest.mark.parametrize("type", [None, "f16"])
def test_narrowing_copies_no_weights(lm: LanguageModel, type: NumberFormat | None) -> None:
    dense = {p.untyped_storage().data_ptr() for p in lm.model.parameters()}
    pruner = pruner_of(lm, query_heads=False)
    pruner.apply(policies(pruner.space)["random"], [type] * len(pruner.space))
    assert {p.untyped_storage().data_ptr() for p in lm.model.parameters()} == dense


@family
@compensated
def test_a_padded_model_equals_the_narrowed_one(config: PreTrainedConfig, name: str) -> None:
    lm, ids = random_model(config), random_windows()
    pruner = pruner_of(lm, COMPENSATIONS[name])
    dense = lm.model(ids).logits
    kept = policies(pruner.space)["random"]
    with pruner.at(kept) as model:
        narrowed = model(ids).logits
    with pruner.padded(kept) as model:
        torch.testing.assert_close(model(ids).logits, narrowed, atol=1e-4, rtol=1e-4)
        for number, coupling in enumerate(lm.couplings):
            assert coupling.consumer.weight.shape == pruner.dense_weight(number).shape
    assert torch.equal(lm.model(ids).logits, dense)


@each("config")
def test_a_kv_cache_does_not_change_logits(config: PreTrainedConfig) -> None:
    """Also if the first layer, or every layer, has no attention."""
    lm, ids = random_model(config), random_windows()
    pruner = pruner_of(lm, Bias())
    for kept in policies(pruner.space).values():
        with pruner.at(kept) as model:
            whole = model(ids, use_cache=False).logits
            for make_cache in (DynamicCache, StaticCache):
                assert_steps_agree(model, ids, whole, make_cache)


def assert_steps_agree(model: nn.Module, ids: Tensor, whole: Tensor, make_cache: type) -> None:
    sized = {"max_cache_len": ids.shape[1]} if make_cache is StaticCache else {}
    named = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"
    cache, done = make_cache(config=model.config, **sized), 0
    for some in ids.split((7, 5, 1, 1, 1, 9), dim=1):
        here = torch.arange(done, done + some.shape[1])
        logits = model(some, **{named: cache}, use_cache=True).logits
        torch.testing.assert_close(logits, whole[:, here], atol=1e-4, rtol=1e-4)
        done += some.shape[1]
        assert int(cache.get_seq_length()) == done


@compensated
def test_rounding_a_policy_rounds_the_matrices_of_its_sites(name: str) -> None:
    lm = random_model(CHECKPOINTS["llama-groups-of-3-tied"])
    pruner = pruner_of(lm, COMPENSATIONS[name])
    kept = pruner.space.dense.tolist()
    kept[1], types = 4, [None, "q4_0", "q8_0", None, None, None]
    pruner.apply(kept)
    before = {name: tensor.clone() for name, tensor in lm.model.named_parameters()}
    with pruner.at(kept, types):
        after = dict(lm.model.named_parameters())
        for key, weight in before.items():
            kind = {"0.mlp": "q4_0", "1.self_attn": "q8_0"}.get(".".join(key.split(".")[2:4]))
            same = weight if kind is None or weight.ndim == 1 else rounded(weight, kind)
            assert torch.equal(after[key], same), key
        saved = sum(
            weight.numel() * (2 - BLOCK_BYTES[kind] / 32)
            for index, kind in ((1, "q4_0"), (2, "q8_0"))
            for weight in (linear.weight for linear in lm.couplings[index].linears)
        )
        assert pruner.bytes_of_rounding == saved
    assert pruner.types == [None] * 6
    for key, weight in lm.model.named_parameters():
        assert torch.equal(weight, before[key]), key


def test_refits_of_rounded_sites_are_rounded() -> None:
    pruner = pruner_of(random_model(CHECKPOINTS["llama-groups-of-3-tied"]), COMPENSATIONS["none"])
    consumer = pruner.lm.couplings[1].consumer
    pruner.narrow(1, 4, "q4_0")
    once = consumer.weight.clone()
    pruner.refit(1, torch.randn(once.shape, generator=torch.Generator().manual_seed(0)), None)
    assert torch.equal(consumer.weight, rounded(consumer.weight, "q4_0"))
    pruner.reset()
    assert torch.equal(consumer.weight, once)


def test_a_policy_is_applied_layer_by_layer(tiny: TinySetup) -> None:
    pruner = tiny.pruner()
    kept = [max(units // 2, 1) for units in tiny.space.units.tolist()]
    for layer in pruner.apply_by_layer(kept):
        narrow = {
            c.layer
            for c, dense in zip(tiny.lm.couplings, pruner.blocks, strict=True)
            if c.consumer.in_features < c.atoms * c.columns
        }
        assert narrow == set(range(layer + 1))
    assert pruner.kept == kept
    pruner.reset()
    assert list(pruner.apply_by_layer(kept)) == list(range(4))


@pytest.mark.parametrize("name", ["bias", "least_squares"])
def test_contiguous_policies_have_the_same_weights(name: str) -> None:
    models = [random_model(CHECKPOINTS["llama-biases"]) for _ in "ab"]
    pruners = [pruner_of(model, COMPENSATIONS[name]) for model in models]
    pruners[1].make_contiguous()
    named = policies(pruners[0].space)
    for policy in ("random", "a layer empty", "dense", "no attention", "random"):
        for pruner in pruners:
            pruner.apply(named[policy])
        for plain, other in zip(*(model.couplings for model in models), strict=True):
            assert plain.consumer.weight.equal(other.consumer.weight)
            assert other.consumer.weight.is_contiguous()
    for pruner in pruners:
        pruner.restore()
    for weight, other in zip(*(model.model.parameters() for model in models), strict=True):
        assert weight.equal(other)
