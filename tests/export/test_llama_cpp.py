"""Exported GGUF files in llama.cpp itself, through the npm package that ships it built."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import normalizers
from transformers import LlamaConfig

from benchmarks.llama_cpp import LlamaCpp
from ppf.export import Pruned, smallest
from ppf.export.gguf import GGUF
from ppf.llm import LanguageModel
from ppf.pruning.compensation import Bias, LeastSquaresWithoutBias, NoCompensation
from tests.checkpoints import CHECKPOINTS, pruner_of, random_model, sizes
from tests.export.conftest import POLICY, assert_greedy, export_gguf
from tests.export.test_stock import ARCHITECTURES, pruned
from tests.sentencepiece import sentencepiece_form

pytestmark = pytest.mark.slow

CASES = {
    "uneven": ([2, 3, 1, 4, 2, 1], NoCompensation(), {}),
    "no attention": ([0, 4, 0, 4, 0, 4], NoCompensation(), {}),
    "no mlp": ([2, 0, 2, 0, 1, 0], NoCompensation(), {}),
    "biases in every form": ([0, 0, 1, 2, 0, 1], Bias(), {}),
    "dense biases": ([1, 4, 2, 2, 2, 3], Bias(), {"attention_bias": True, "mlp_bias": True}),
    "stretched positions": (
        [1, 2, 2, 1, 2, 2],
        NoCompensation(),
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
}
CONFIG = sizes(96, 6, 128, 2, tied=True) | {"head_dim": 32}


def assert_continued(
    llama_cpp: LlamaCpp, models: list[LanguageModel], wanted: list[dict[str, Any]]
) -> None:
    """llama.cpp reads the prompt of each file as the model does, and continues it greedily."""
    for lm, asked, found in zip(models, wanted, llama_cpp(wanted), strict=True):
        assert found["prompt"] == lm.tokenizer(asked["prompt"]).input_ids
        assert len(found["tokens"]) == asked["tokens"]
        assert_greedy(lm.model, found)


def test_every_form_of_layer(llama_cpp: LlamaCpp, tmp_path: Path) -> None:
    models, wanted = [], []
    for name, (kept, compensation, more) in CASES.items():
        models.append(random_model(LlamaConfig(**CONFIG, **more)))
        pruner = pruner_of(models[-1], compensation, channel_multiple=32)
        pruner.apply(kept)
        file = export_gguf(pruner, tmp_path, POLICY | {"model": name}, type="f16")
        wanted.append({"file": str(file), "prompt": "Hello, 12 of you.", "tokens": 16})
    assert_continued(llama_cpp, models, wanted)


FAMILIES = {
    "mistral-sliding-window": [1, 32, 2, 0, 0, 64],
    "qwen2-groups-of-7-local-layers-tied": [2, 32, 0, 64, 1, 0],
    "qwen3-groups-of-2-tied": [0, 64, 2, 0, 1, 128],
    "qwen3-32-heads-untied": [1, 64, 4, 32, 0, 0],  # filled up to 4 groups and 64 channels
    "gemma3-one-kv-head-tied": [1, 32, 0, 64, 1, 0],
    "gemma3-groups-of-3-capped-logits-untied": [1, 48, 0, 16, 1, 64],
}


def test_every_family(llama_cpp: LlamaCpp, tmp_path: Path) -> None:
    """Within the windows of Mistral and Qwen 2, and beyond those of Gemma 3."""
    models, wanted = [], []
    for name, atoms in FAMILIES.items():
        models.append(random_model(CHECKPOINTS[name]))
        pruner = pruner_of(models[-1], LeastSquaresWithoutBias(0.01, 0.01), channel_multiple=16)
        sites = zip(pruner.space.sites, atoms, strict=True)
        pruner.apply([count // site.atoms_per_unit for site, count in sites])
        file = export_gguf(pruner, tmp_path, POLICY | {"model": name}, type="f16")
        tokens = 16 if name.startswith(("gemma3", "qwen3")) else 3
        wanted.append({"file": str(file), "prompt": "Hello", "tokens": tokens})
    assert_continued(llama_cpp, models, wanted)


def test_a_tokenizer_of_sentencepieces_form(llama_cpp: LlamaCpp, tmp_path: Path) -> None:
    lm = random_model(LlamaConfig(**CONFIG | {"vocab_size": 320}))
    texts = {
        "llama": ["the cat sat", "Thé catthe", "a  the cat"],
        "gemma": ["the cat<b>the", "é  a"],
    }
    forms = {"llama": sentencepiece_form(normalizers.Prepend("▁")), "gemma": sentencepiece_form()}
    wanted, expected = [], []
    for name, tokenizer in forms.items():
        lm.tokenizer = tokenizer
        file = str(export_gguf(pruner_of(lm), tmp_path, POLICY | {"model": name}, type="f16"))
        wanted += [{"file": file, "prompt": text, "tokens": 1} for text in texts[name]]
        expected += [tokenizer(text).input_ids for text in texts[name]]
    assert [found["prompt"] for found in llama_cpp(wanted)] == expected


def test_equal_layers_under_the_familys_own_architecture(
    llama_cpp: LlamaCpp, tmp_path: Path
) -> None:
    models, wanted = [], []
    for name in ARCHITECTURES:
        made = smallest(Pruned.of(pruned(name)), {})
        assert made.plain
        models.append(made.lm)
        file = GGUF("f16", 0).write(made, tmp_path, POLICY | {"model": name})
        wanted.append({"file": str(file), "prompt": "Hello", "tokens": 3})
    assert_continued(llama_cpp, models, wanted)
