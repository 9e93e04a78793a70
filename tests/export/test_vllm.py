"""vLLM's own reader of configs, which needs no GPU. docs/vllm.md says how to install it beside."""

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ppf.export import Pruned
from ppf.export.decilm import DeciLM
from ppf.pruning import LivePruner
from tests.checkpoints import CHECKPOINTS, pruner_of, random_model
from tests.export.conftest import POLICY

REASON = "vLLM, or a package that it needs, is not installed; docs/vllm.md has the command"
needed = partial(pytest.importorskip, reason=REASON, exc_type=ImportError)
with warnings.catch_warnings(action="ignore"):
    needed("vllm.config")
    readers = needed("vllm.transformers_utils.model_arch_config_convertor")
    configs = needed("vllm.transformers_utils.config")

pytestmark = pytest.mark.filterwarnings("ignore")


def read(folder: Path) -> Any:
    """The shapes that vLLM builds its attention layers and KV caches with."""
    config = configs.get_config(str(folder), trust_remote_code=True)
    known = readers.MODEL_ARCH_CONFIG_CONVERTORS
    reader = known.get(config.model_type, readers.ModelArchConfigConvertorBase)
    return reader(config, config.get_text_config()).convert()


def test_every_layer_has_the_policys_shapes(pruner: LivePruner, folder: Path) -> None:
    found, dense = read(folder), pruner.lm.model.config
    attention = [
        (max(atoms, 1), queries)
        for coupling, (atoms, queries) in zip(pruner.lm.couplings, pruner.shapes, strict=True)
        if coupling.kind == "attention"
    ]
    layers = [found[index] for index in range(dense.num_hidden_layers)]
    assert [layer.total_num_kv_heads for layer in layers] == [groups for groups, _ in attention]
    heads = [groups * queries for groups, queries in attention]
    assert [layer.total_num_attention_heads for layer in layers] == heads
    head = getattr(dense, "head_dim", None) or dense.hidden_size // dense.num_attention_heads
    assert {layer.head_size for layer in layers} == {head}
    assert found.architectures == ["PrunedForCausalLM"]


def test_a_decilm_folder(tmp_path: Path) -> None:
    model = random_model(CHECKPOINTS["llama-groups-of-3-tied"])
    pruner = pruner_of(model, query_heads=False)
    pruner.apply([2, 1, 0, 2, 2, 0])
    found = read(DeciLM().write(Pruned.of(pruner), tmp_path, POLICY))
    assert found.architectures == ["DeciLMForCausalLM"]
    assert (found.total_num_attention_heads, found.total_num_kv_heads) == (6, 2)
