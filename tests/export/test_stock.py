"""Models of equal layers are written as models of the family's own class."""

import json
from pathlib import Path

import pytest
import torch
from gguf import GGUFReader
from transformers import AutoModelForCausalLM

from ppf.export import Pruned, read_pruned, smallest
from ppf.export.gguf import GGUF
from ppf.export.huggingface import HuggingFace
from ppf.pruning import LivePruner
from ppf.pruning.compensation import Bias, LeastSquaresWithoutBias
from tests.checkpoints import CHECKPOINTS, pruner_of, random_model
from tests.export.conftest import POLICY, assert_same_logits

EQUAL = {
    "llama-groups-of-3-tied": [1, 3, 0, 0, 1, 3],
    "llama-wide-heads": [2, 4, 2, 4, 2, 4],
    "mistral-sliding-window": [2, 3, 2, 3, 0, 0],
    "qwen2-groups-of-7-local-layers-tied": [1, 4, 0, 0, 1, 4],
    "qwen3-32-heads-untied": [5, 2, 5, 2, 0, 0],
    "mixtral-untied": [1, 3, 0, 0, 1, 3],
    "gemma3-one-kv-head-tied": [0, 0, 1, 4, 1, 4],
}
"""Units that each site keeps."""
ARCHITECTURES = {
    "llama-groups-of-3-tied": "llama",
    "mistral-sliding-window": "llama",
    "qwen2-groups-of-7-local-layers-tied": "deci",
    "qwen3-32-heads-untied": "qwen3",
    "gemma3-one-kv-head-tied": "gemma3",
}
"""Of GGUF files."""


def pruned(name: str) -> LivePruner:
    pruner = pruner_of(random_model(CHECKPOINTS[name]), query_heads=False)
    pruner.apply(EQUAL[name])
    return pruner


@pytest.mark.parametrize("name", EQUAL)
def test_the_folder_is_of_the_familys_own_class(name: str, tmp_path: Path) -> None:
    pruner = pruned(name)
    dense = pruner.lm.model.config
    folder = HuggingFace().write(smallest(Pruned.of(pruner), {}), tmp_path, POLICY)
    assert not list(folder.glob("*.py"))
    config = json.loads((folder / "config.json").read_text())
    assert not {"auto_map", "per_layer_config", "pruned_blocks"} & config.keys()
    assert config["model_type"] == dense.model_type
    assert config["num_hidden_layers"] == 3 - EQUAL[name].count(0) // 2
    wide, unit = ("num_local_experts", 1) if name.startswith("mix") else ("intermediate_size", 16)
    assert config[wide] == unit * max(EQUAL[name][1::2])
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False).eval()
    assert type(model) is type(pruner.lm.model)
    assert_same_logits(model, pruned(name).lm.model)
    again = read_pruned(folder, torch.float32)
    assert again.plain and again.shapes == again.whole
    assert "trust_remote_code" not in (folder / "README.md").read_text()
    HuggingFace().write(again, folder, {})  # without a policy, as a dense model
    assert not (folder / "policy.json").exists()


@pytest.mark.parametrize(("name", "architecture"), ARCHITECTURES.items())
def test_the_file_has_the_familys_own_architecture(
    name: str, architecture: str, tmp_path: Path
) -> None:
    made = smallest(Pruned.of(pruned(name)), {})
    reader = GGUFReader(GGUF("f16", 0).write(made, tmp_path, POLICY))
    fields = {key.partition(".")[2]: field.contents() for key, field in reader.fields.items()}
    assert fields["architecture"] == architecture
    config = made.lm.model.config
    layers = config.num_hidden_layers
    assert fields["block_count"] == layers < 3
    assert not any(tensor.name.startswith(f"blk.{layers}.") for tensor in reader.tensors)
    for key, count in {
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "feed_forward_length": config.intermediate_size,
    }.items():
        assert fields[key] == ([count] * layers if architecture == "deci" else count)


def test_other_models_stay_what_they_are() -> None:
    lm = random_model(CHECKPOINTS["mistral-sliding-window"])
    pruner = pruner_of(lm, Bias(), query_heads=False)
    for kept in ([1, 3, 1, 3, 1, 4], [1, 3, 0, 3, 1, 3], [1, 3, 1, 3, 1, 3]):
        pruner.apply(kept)  # unequal, a block missing alone, with added biases
        assert smallest(Pruned.of(pruner), {}).lm is lm
    others = {"opt-no-biases-untied": 2, "gpt-neox-32-heads-untied": 2, "llama-wide-heads": 3}
    for name, groups in others.items():  # their classes allow other numbers of heads only
        lm = random_model(CHECKPOINTS[name])
        pruner = pruner_of(lm)
        pruner.apply([groups, 3] * 3)
        assert smallest(Pruned.of(pruner), {}).lm is lm
        assert groups not in lm.couplings[0].equal


def test_weights_of_sequential_compensation_are_written() -> None:
    lm = random_model(CHECKPOINTS["llama-groups-of-3-tied"])
    pruner = pruner_of(lm, LeastSquaresWithoutBias(0.1, 0.1), query_heads=False)
    with torch.inference_mode():  # as `refit_sequentially`
        pruner.apply(EQUAL["llama-groups-of-3-tied"])
        assert lm.couplings[1].consumer.weight.is_inference()
    made = smallest(Pruned.of(pruner), {})
    assert made.plain
    assert_same_logits(made.lm.model, lm.model)


def test_number_formats_keep_the_layers_that_they_name() -> None:
    model = Pruned.of(pruned("llama-groups-of-3-tied"))
    assert smallest(model, {}).plain
    assert smallest(model, {"types": {"2.mlp": "q8_0"}}) is model
