"""The script that trains the models of experiments/models."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from transformers import LlamaConfig

from experiments.models import make
from ppf.llm import load

SMALL = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def test_a_resumed_training_gives_the_same_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(make, "SAVE", 1)
    config = LlamaConfig(**SMALL, vocab_size=64)
    windows = torch.randint(64, (16, 16), generator=torch.Generator().manual_seed(0))
    whole = make.train(config, windows, tmp_path / "whole.pt", steps=2)

    with monkeypatch.context() as patch:
        patch.setattr(make, "track", lambda steps, _: steps[:1])  # as if it were killed then
        make.train(config, windows, tmp_path / "cut.pt", steps=2)
    torch.manual_seed(1)
    again = make.train(config, windows, tmp_path / "cut.pt", steps=2).state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in whole.state_dict().items())


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
