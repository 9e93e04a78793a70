"""DeciLM folders, read as vLLM's nemotron_nas.py reads them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaForCausalLM, LlamaMLP

from ppf.errors import PPFError
from ppf.export import Pruned
from ppf.export.decilm import DeciLM
from ppf.pruning import LivePruner
from ppf.pruning.compensation import Bias
from tests.checkpoints import CHECKPOINTS, pruner_of, random_model, random_windows
from tests.export.conftest import POLICY

FORMS = (
    *("llama-groups-of-3-tied", "llama-biases", "llama-wide-heads", "mistral-sliding-window"),
    "qwen2-groups-of-7-local-layers-tied",
)


class NoAttention(nn.Module):
    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, None]:
        return torch.zeros_like(hidden_states), None


class NoFFN(nn.Module):
    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(hidden_states)


def as_vllm_builds_it(folder: Path) -> LlamaForCausalLM:
    config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    model = LlamaForCausalLM(config)
    for layer, block in zip(model.model.layers, config.block_configs, strict=True):
        if block.attention.no_op:
            layer.self_attn, layer.input_layernorm = NoAttention(), nn.Identity()
        else:
            groups = config.num_attention_heads // block.attention.n_heads_in_group
            assert layer.self_attn.k_proj.out_features == groups * config.head_dim
        assert not hasattr(block.ffn, "ffn_mult")
        if block.ffn.no_op:
            layer.mlp, layer.post_attention_layernorm = NoFFN(), nn.Identity()
        else:
            config.intermediate_size = block.ffn.intermediate_size
            layer.mlp = LlamaMLP(config)
    tensors = load_file(folder / "model.safetensors")
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model.eval()


@pytest.fixture(params=FORMS)
def pruner(request: pytest.FixtureRequest) -> LivePruner:
    """FFNs of all widths; the second layer without attention, the first and third without FFN."""
    pruner = pruner_of(random_model(CHECKPOINTS[request.param]), Bias())
    groups = pruner.space.dense.tolist()[0]
    pruner.apply([groups, 0, 0, 2, groups, 0])
    return pruner


@torch.inference_mode()
def test_logits_are_ours(pruner: LivePruner, tmp_path: Path) -> None:
    exporter = DeciLM()
    exporter.check(Pruned.of(pruner))
    model = as_vllm_builds_it(exporter.write(Pruned.of(pruner), tmp_path, POLICY))
    ids = random_windows()[:, :8]  # within the sliding window
    torch.testing.assert_close(model(ids).logits, pruner.lm.model(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("pruner", ["mistral-sliding-window"], indirect=True)
def test_the_folder(pruner: LivePruner, tmp_path: Path) -> None:
    DeciLM().write(Pruned.of(pruner), tmp_path, POLICY)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "nemotron-nas"
    assert config["architectures"] == ["DeciLMForCausalLM"]
    assert config["max_position_embeddings"] == 8  # its sliding window
    assert config["block_configs"][1] == {
        "attention": {"n_heads_in_group": None, "no_op": True, "replace_with_linear": False},
        "ffn": {"intermediate_size": 32, "no_op": False, "replace_with_linear": False},
    }
    assert json.loads((tmp_path / "policy.json").read_text()) == POLICY


@pytest.mark.parametrize(
    ("form", "first", "message"),
    [
        ("llama-groups-of-3-tied", 1, "0.attention keeps 1 KV groups of 1 query heads, not 2 of 3"),
        ("llama-groups-of-3-tied", 0, "keeps that of the first layer"),
        ("gemma3-one-kv-head-tied", 1, "supports llama, mistral, qwen2, not gemma3_text"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(form: str, first: int, message: str) -> None:
    pruner = pruner_of(random_model(CHECKPOINTS[form]))
    pruner.apply([first, *pruner.space.dense.tolist()[1:]])
    with pytest.raises(PPFError, match=message):
        DeciLM().check(Pruned.of(pruner))
