"""Masked, live-pruned and exported models of every family give the same logits."""

import copy
from pathlib import Path

import torch
from transformers import PreTrainedConfig

from tests.checkpoints import (
    each,
    masked,
    policies,
    pruner_of,
    random_model,
    random_windows,
    width_space,
)
from tests.export.conftest import POLICY, assert_same_logits, export_folder, loaded

form = each("config")


@form
def test_masked_and_live_pruned_logits_agree(config: PreTrainedConfig) -> None:
    lm, ids = random_model(config), random_windows()
    dense = copy.deepcopy(lm.model)
    pruner = pruner_of(lm)
    for kept in policies(pruner.space).values():
        expected = masked(dense, pruner.space, pruner.bank.orders, kept)(ids).logits
        with pruner.at(kept) as live:
            torch.testing.assert_close(live(ids).logits, expected, atol=1e-4, rtol=0)


@form
def test_live_pruned_and_exported_logits_agree(config: PreTrainedConfig, tmp_path: Path) -> None:
    lm = random_model(config)
    pruner = pruner_of(lm)
    for policy in ("random", "a layer empty", "no attention"):
        pruner.apply(policies(pruner.space)[policy])
        assert_same_logits(loaded(export_folder(pruner, tmp_path, POLICY)), lm.model)


@form
def test_the_space_counts_all_parameters_except_norms_and_consumer_biases(
    config: PreTrainedConfig,
) -> None:
    lm = random_model(config)
    prunable = {coupling.kind for coupling in lm.couplings}
    consumers = {coupling.consumer.bias for coupling in lm.couplings}
    counted = sum(
        parameter.numel()
        for name, parameter in lm.adapter.layers(lm.model).named_parameters()
        if "norm" not in name and parameter not in consumers
        if "attention" in prunable or "self_attn" not in name
    )
    assert width_space(lm).total == counted


@form
def test_widths_of_dense_blocks_equal_the_config(config: PreTrainedConfig) -> None:
    lm = random_model(config)
    for coupling in lm.couplings:
        widths = lm.adapter.widths(coupling.kind, coupling.atoms, coupling.queries)
        assert widths == {name: getattr(config, name) for name in widths}
