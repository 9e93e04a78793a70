"""The scripts that make the models of studies."""

import copy
import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.dimensions import hidden
from experiments.experts.make import Shape, as_mixtral, split
from experiments.models import make
from ppf.llm import load

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def test_a_model_is_written_with_tokenizer_and_losses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    texts = [f"def f{n}(x):\n    return x + {n}\n" * 40 for n in range(200)]
    monkeypatch.setattr(make, "documents", lambda: texts)
    config = LlamaConfig(**SMALL, vocab_size=make.VOCABULARY, bos_token_id=0, eos_token_id=0)
    monkeypatch.setitem(make.CONFIGS, "small", config)
    make.make("small", tmp_path, steps=2)
    report = json.loads((tmp_path / "small" / "training.json").read_text())
    assert 0 < report["bigram_loss"] < report["validation_loss"] < 9
    lm = load(OmegaConf.create({"path": str(tmp_path / "small"), "dtype": "float32"}), "")
    assert lm.tokenizer.decode(lm.tokenizer(texts[0])["input_ids"]) == texts[0]


def test_a_divided_model_is_a_mixtral_and_near_the_dense_model() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(**SMALL | {"num_hidden_layers": 2}, intermediate_size=64, vocab_size=97)
    ids, distances = torch.randint(0, 97, (8, 32)), []
    dense = LlamaForCausalLM(config).eval().requires_grad_(False)
    for top_k in (4, 2):
        shape = Shape(4, top_k, 0)
        model = copy.deepcopy(dense)
        split(model, ids, shape)
        made = as_mixtral(model, shape)
        logits = made(ids).logits
        torch.testing.assert_close(logits, model(ids).logits, rtol=1e-3, atol=1e-4)
        distances.append(float((logits - dense(ids).logits).norm() / dense(ids).logits.norm()))
        assert made.config.num_experts_per_tok == top_k
        assert made.model.layers[0].mlp.experts.down_proj.shape == (4, 32, 16)
    assert distances[0] < distances[1] < 0.2


@torch.inference_mode()
def test_a_whole_basis_gives_the_dense_model_and_so_does_a_refit_of_other_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hidden, "DAMPING", 1e-6)
    torch.manual_seed(0)
    config = LlamaConfig(**SMALL | {"num_hidden_layers": 2}, intermediate_size=64, vocab_size=97)
    ids, dense = torch.randint(0, 97, (16, 32)), LlamaForCausalLM(config).eval()
    for norm in (dense.model.norm, *(block.norm for block in hidden.blocks(dense))):
        norm.weight.data = torch.rand(32) + 0.5
    expected = dense(ids).logits
    for basis in hidden.bases(dense, ids).values():
        small = hidden.sliced(dense, basis)
        torch.testing.assert_close(small(ids).logits, expected, rtol=0, atol=1e-4)
        for block in hidden.blocks(small):
            block.last.weight.mul_(2)
        hidden.refit(dense, small, basis, ids)
        torch.testing.assert_close(small(ids).logits, expected, rtol=0, atol=1e-3)
