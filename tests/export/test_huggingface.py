import ast
import json
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import load_file
from torch import nn
from transformers import AttentionInterface, AutoConfig, AutoModel, AutoTokenizer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from ppf.evaluation.size import parameters, weight_bytes
from ppf.pruning import LivePruner
from ppf.pruning.compensation import LeastSquares
from ppf.pruning.sequential import refit_sequentially
from tests.checkpoints import CHECKPOINTS, pruner_of, random_model, random_windows
from tests.export.conftest import POLICY, assert_same_logits, export_folder, loaded, own
from tests.observing import NO_TOKENS

LEAST_SQUARES = LeastSquares(damping=0.01, refit_damping=0.01)
GREEDY = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
ONE_FAMILY = pytest.mark.parametrize("pruner", ["llama-groups-of-3-tied"], indirect=True)


def test_a_reestimated_model_loads_with_the_biases_it_was_given(tmp_path: Path) -> None:
    """Re-estimation also gives biases to blocks that keep their width."""
    pruner = pruner_of(random_model(CHECKPOINTS["llama-groups-of-3-tied"]), LEAST_SQUARES)
    kept = pruner.space.dense.clone()
    kept[-1] -= 1
    pruner.apply(kept.tolist())
    refit_sequentially(pruner, random_windows(), NO_TOKENS, LEAST_SQUARES)
    export_folder(pruner, tmp_path / "model", POLICY)
    for model in (loaded(tmp_path / "model"), own(tmp_path / "model")):
        assert_same_logits(model, pruner.lm.model)


def test_every_layer_calls_the_attention_interface_with_its_heads(
    pruner: LivePruner, folder: Path
) -> None:
    """As vLLM needs it, which gives each layer a KV cache of these heads."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    called: dict[int, tuple[int, int]] = {}

    def counted(module: nn.Module, query, key, *args, **kwargs):
        called[module.layer_idx] = (query.shape[1], key.shape[1])
        return sdpa_attention_forward(module, query, key, *args, **kwargs)

    AttentionInterface.register("counted", counted)
    config._attn_implementation = "counted"
    model = AutoModel.from_config(config, trust_remote_code=True)
    model(random_windows(), use_cache=False)
    layers, kv_heads = config.per_layer_config, pruner.lm.adapter.kv_heads
    assert called == {
        index: (layer.num_attention_heads, getattr(layer, kv_heads))
        for index, layer in enumerate(layers)
    }
    pairs = zip(pruner.lm.couplings, pruner.shapes, strict=True)
    groups = [atoms for coupling, (atoms, _) in pairs if coupling.kind == "attention"]
    assert [heads for _, heads in called.values()] == [max(count, 1) for count in groups]


def test_saved_again_and_loaded_again(pruner: LivePruner, folder: Path, tmp_path: Path) -> None:
    loaded(folder).save_pretrained(tmp_path / "again")
    assert {file.name for file in (tmp_path / "again").glob("*.py")} == {
        "modeling_pruned.py",
        "empty_block.py",
    }
    assert_same_logits(loaded(tmp_path / "again"), pruner.lm.model)
    for config in (folder / "config.json", tmp_path / "again" / "config.json"):
        widths = json.loads(config.read_text())["per_layer_config"]
        kv_heads = pruner.lm.adapter.kv_heads
        queries = pruner.lm.model.config.num_attention_heads // pruner.lm.couplings[0].atoms
        assert (widths["0"][kv_heads], widths["0"]["num_attention_heads"]) == (1, queries)


@pytest.mark.parametrize(
    "how", [{}, {"num_beams": 3}, {"cache_implementation": "static", "prefill_chunk_size": 2}]
)
def test_generates_with_a_kv_cache(pruner: LivePruner, folder: Path, how: dict) -> None:
    model, prompt = loaded(folder), random_windows()[:, :5]
    wanted = {**GREEDY, **how, "attention_mask": torch.ones_like(prompt)}
    plain = {name: value for name, value in wanted.items() if name in GREEDY or name == "num_beams"}
    plain["attention_mask"] = wanted["attention_mask"]
    expected = pruner.lm.model.generate(prompt, use_cache=False, **plain)
    assert torch.equal(model.generate(prompt, **wanted), expected)


def test_weights_shrink_by_what_the_policy_removed(
    pruner: LivePruner, folder: Path, tmp_path: Path
) -> None:
    config, removed = pruner.lm.model.config, pruner.space.removed(torch.tensor(pruner.kept))
    with pruner.at(pruner.space.dense.tolist()) as dense:
        dense.save_pretrained(tmp_path / "dense")
        before = parameters(dense)
        biased = sum(coupling.consumer.bias is not None for coupling in pruner.lm.couplings)
    # Bias compensation gives each narrowed consumer a bias where the family has none.
    added = sum(coupling.consumer.bias is not None for coupling in pruner.lm.couplings) - biased
    # Norms over single heads go with the attention that is gone altogether.
    norms = sum(p.numel() for n, p in pruner.blocks[0].named_parameters() if "norm" in n)
    after = before - int(removed) + added * config.hidden_size - norms

    model, tensors = loaded(folder), load_file(folder / "model.safetensors")
    assert parameters(model) == after
    assert sum(tensor.numel() for tensor in tensors.values()) == after
    assert weight_bytes(folder) / weight_bytes(tmp_path / "dense") == pytest.approx(
        after / before, rel=0.01
    )


@ONE_FAMILY
def test_the_code_needs_only_torch_and_transformers(folder: Path) -> None:
    trees = [ast.parse(file.read_text()) for file in folder.glob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    absolute = {
        str(node.module) for node in nodes if isinstance(node, ast.ImportFrom) and not node.level
    }
    packages = {name.partition(".")[0] for name in plain | absolute}
    assert packages == {"logging", "torch", "transformers", "typing"}


@ONE_FAMILY
def test_tokenizer_and_generation_config_are_exported(pruner: LivePruner, folder: Path) -> None:
    text = "Ünïcode, too."
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer(text).input_ids == pruner.lm.tokenizer(text).input_ids
    assert loaded(folder).generation_config.eos_token_id == 0


@ONE_FAMILY
def test_an_earlier_models_tokenizer_is_replaced(pruner: LivePruner, tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_text("earlier")
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tool_use.jinja").write_text("earlier")
    (tmp_path / "added_tokens.json").write_text('{"<earlier>": 3}')
    export_folder(pruner, tmp_path, POLICY)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template is None
    assert not (tmp_path / "added_tokens.json").exists()


@ONE_FAMILY
def test_large_weights_are_divided_and_replace_earlier_ones(
    pruner: LivePruner, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = partial(split_torch_state_dict_into_shards, max_shard_size="20KB")
    monkeypatch.setattr("ppf.export.files.split_torch_state_dict_into_shards", limited)
    pruner.apply([2] * len(pruner.space))
    export_folder(pruner, folder, POLICY)
    assert not (folder / "model.safetensors").exists()
    assert len(list(folder.glob("*.safetensors"))) > 2
    assert_same_logits(loaded(folder), pruner.lm.model)
    monkeypatch.undo()
    export_folder(pruner, folder, POLICY)
    assert [file.name for file in folder.glob("*.safetensors*")] == ["model.safetensors"]


@ONE_FAMILY
def test_policy_and_card(pruner: LivePruner, folder: Path) -> None:
    assert json.loads((folder / "policy.json").read_text()) == POLICY
    card = (folder / "README.md").read_text()
    assert "It was not measured." in card and "apply_chat_template" not in card
    with pruner.at(pruner.space.dense.tolist()) as dense:
        before = parameters(dense)
    count = parameters(pruner.lm.model)
    assert f"# a model, {1 - count / before:.1%} fewer parameters" in card
    assert f"{count:,} parameters instead of {before:,}." in card
    assert "PPF removed 30.0% of the parameters of attention and FFN blocks" in card


def test_exporting_leaves_the_live_model_as_it_was(pruner: LivePruner, tmp_path: Path) -> None:
    ids, config = random_windows(), pruner.lm.model.config.to_dict()
    logits = pruner.lm.model(ids).logits
    export_folder(pruner, tmp_path, POLICY)
    assert torch.equal(pruner.lm.model(ids).logits, logits)
    assert pruner.lm.model.config.to_dict() == config
