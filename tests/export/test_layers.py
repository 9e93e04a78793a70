"""Layers that have lost attention and FFN are not in the exported model."""

import copy
from pathlib import Path

import pytest
import torch

from ppf.export import Pruned, read_pruned, smallest
from ppf.export.huggingface import HuggingFace
from ppf.pruning import LivePruner
from ppf.pruning.compensation import Bias
from tests.checkpoints import CHECKPOINTS, pruner_of, random_model, random_windows
from tests.export.conftest import POLICY, assert_same_logits, loaded

STOCK = {
    "llama-groups-of-3-tied": True,  # with the biases that its config can ask for
    "qwen2-groups-of-7-local-layers-tied": False,
    "qwen3-moe-a-dense-layer-tied": False,
    "gemma3-groups-of-3-capped-logits-untied": True,
    "opt-32-heads-tied": True,
    "gpt-neox-32-heads-untied": True,
    "gpt-neox-sequential-no-biases-tied": True,
}
"""Whether the family's own class can hold the biases of a removed layer."""


def pruned(name: str, gone: int, *, narrow: bool = False) -> LivePruner:
    """One layer is empty, and the others are whole; with `narrow`, the last one is not."""
    pruner = pruner_of(random_model(CHECKPOINTS[name]), Bias())
    sites, last = pruner.space.sites, 2 if narrow else None
    pruner.apply([0 if s.layer == gone else s.units - (s.layer == last) for s in sites])
    return pruner


@pytest.mark.parametrize(
    ("name", "narrow"),
    [
        *((name, False) for name in STOCK),
        ("llama-groups-of-3-tied", True),
        ("gemma3-groups-of-3-capped-logits-untied", True),
        ("gpt-neox-32-heads-untied", True),
    ],
)
def test_the_folder_has_fewer_layers(name: str, narrow: bool, tmp_path: Path) -> None:
    pruner = pruned(name, 1, narrow=narrow)
    live, dense = pruner.lm.model, copy.deepcopy(pruner.lm.model.config)
    model = smallest(Pruned.of(pruner), {})
    assert_same_logits(model.lm.model, live)
    folder = HuggingFace().write(model, tmp_path, POLICY)
    assert bool(list(folder.glob("*.py"))) != (STOCK[name] and not narrow)
    exported, again = loaded(folder), read_pruned(folder, torch.float32)
    for found in (exported, again.lm.model):
        assert_same_logits(found, live)
        assert found.config.num_hidden_layers == 2
        if kinds := getattr(dense, "layer_types", None):
            assert found.config.layer_types == [kinds[0], kinds[2]]
    assert (again.shapes, again.whole) == (model.shapes, model.whole)
    ids, given = random_windows()[:, :5], {"max_new_tokens": 4, "min_new_tokens": 4}
    given |= {"do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones_like(ids)}
    expected = live.generate(ids, use_cache=False, **given)
    assert torch.equal(exported.generate(ids, **given), expected)
    assert len(exported(ids, use_cache=True).past_key_values.layers) == 2
    assert live.config.to_dict() == dense.to_dict()
    assert "has 2 layers and" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "gone"),
    [
        ("llama-groups-of-3-tied", 0),  # no block in front takes the biases
        ("opt-projected-embeddings-norms-last", 1),  # norms follow the stream
        ("olmoe-experts-only", 1),  # has attention
    ],
)
def test_a_layer_stays_if_it_does_something(name: str, gone: int) -> None:
    model = Pruned.of(pruned(name, gone))
    assert smallest(model, {}) is model
