"""The script that trains the models of experiments/models."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from transformers import LlamaConfig

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
