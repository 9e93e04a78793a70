"""The script that trains the models of experiments/models."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from experiments.models import make
from ppf.llm import load

SHAPE = {
    **make.SHAPES["llama"],
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "intermediate_size": 32,
    "vocab_size": 64,
}


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.randint(64, (16, 16), generator=torch.Generator().manual_seed(0))


QUICK = {"disable_tqdm": True, "save_steps": 1, "max_steps": 2}


def test_a_resumed_training_gives_the_same_weights(tmp_path: Path) -> None:
    windows = torch.randint(64, (16, 16), generator=torch.Generator().manual_seed(0))

    def weights() -> dict[str, torch.Tensor]:
        return make.train(SHAPE, windows, windows[:8], tmp_path, **QUICK).model.state_dict()

    whole = weights()
    state = tmp_path / "checkpoint-2" / "trainer_state.json"
    state.unlink()  # as if it had been killed while it wrote this checkpoint
    again = weights()
    assert state.exists()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_a_model_is_written_with_tokenizer_and_losses(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    texts = [f"def f{n}(x):\n    return x + {n}\n" * 40 for n in range(200)]
    monkeypatch.setattr(make, "documents", lambda: texts)
    monkeypatch.setitem(make.SHAPES, "small", {**SHAPE, "vocab_size": make.VOCABULARY})
    make.make("small", tmp_path, **QUICK)
    report = json.loads((tmp_path / "small" / "training.json").read_text())
    assert 0 < report["bigram_loss"] < report["validation_loss"] < 9
    lm = load(OmegaConf.create({"path": str(tmp_path / "small"), "dtype": "float32"}), "")
    assert lm.tokenizer.decode(lm.tokenizer(texts[0])["input_ids"]) == texts[0]
