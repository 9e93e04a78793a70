"""Exported GGUF files in llama.cpp itself, through the npm package that ships it built."""

import json
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers
from torch import nn
from transformers import LlamaConfig, PreTrainedTokenizerFast

from ppf.export.gguf import export_gguf
from ppf.llm import LanguageModel
from ppf.pruning import LivePruner
from ppf.pruning.compensation import Bias, LeastSquares, NoCompensation
from tests.checkpoints import pruner_of, random_model
from tests.export.conftest import POLICY

VERSION = "3.22.1"
ARCHITECTURES = {"x86_64": "linux-x64", "aarch64": "linux-arm64"}
Run = Callable[[list[dict]], list[dict]]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def llama_cpp(cache: str) -> Run:
    """Runs llama_cpp.mjs; the package is installed once into the cache (85 MB)."""
    node, npm = shutil.which("node"), shutil.which("npm")
    binary = ARCHITECTURES.get(platform.machine())
    if not (node and npm and binary and platform.system() == "Linux"):
        pytest.skip("llama.cpp's npm package needs node and npm on Linux (x64 or arm64)")
    folder = Path(cache) / f"node-llama-cpp-{VERSION}"
    packages = [f"node-llama-cpp@{VERSION}", f"@node-llama-cpp/{binary}@{VERSION}"]
    if not (folder / "package.json").is_file():
        folder.mkdir(exist_ok=True)
        install = [npm, "install", "--prefix", str(folder), "--no-audit", "--no-fund"]
        install += ["--ignore-scripts", "--omit=optional", *packages]
        done = subprocess.run(install, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"npm cannot install {packages[0]}: {done.stderr.splitlines()[-1]}")

    def run(wanted: list[dict]) -> list[dict]:
        command = [node, str(Path(__file__).with_name("llama_cpp.mjs")), str(folder)]
        done = subprocess.run(command, input=json.dumps(wanted), capture_output=True, text=True)
        assert not done.returncode, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


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
CONFIG = {
    "vocab_size": 257,
    "hidden_size": 96,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "tie_word_embeddings": True,
}


@torch.inference_mode()
def assert_greedy(model: nn.Module, found: dict) -> None:
    """Every token is the model's best, or ties with it (llama.cpp computes in f16)."""
    ids = torch.tensor([found["prompt"] + found["tokens"]])
    scores = model(ids).logits[0, len(found["prompt"]) - 1 : -1]
    chosen = scores.gather(1, torch.tensor(found["tokens"])[:, None])[:, 0]
    assert (scores.amax(1) - chosen).max() < 0.02


def test_every_form_of_layer(llama_cpp: Run, tmp_path: Path) -> None:
    models: dict[str, LanguageModel] = {}
    wanted = []
    for name, (kept, compensation, more) in CASES.items():
        models[name] = random_model(LlamaConfig(**CONFIG, **more))
        pruner = pruner_of(models[name], compensation, channel_multiple=32)
        pruner.apply(kept)
        file = export_gguf(pruner, tmp_path, {"model": name}, type="f16")
        wanted.append({"file": str(file), "prompt": "Hello, 12 of you.", "tokens": 16})
    for name, found in zip(models, llama_cpp(wanted), strict=True):
        assert len(found["tokens"]) == 16
        assert found["prompt"] == models[name].tokenizer("Hello, 12 of you.").input_ids
        assert_greedy(models[name].model, found)


def sentencepiece_form() -> PreTrainedTokenizerFast:
    """Llama 2's form of tokenizer, with few merges."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens += ["▁", *"abcdefghijklmnopqrstuvwxyz"]
    pairs = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "c"), ("a", "t"), ("▁c", "at")]
    tokens += ["".join(pair) for pair in pairs]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    bpe = models.BPE(vocabulary, pairs, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


def test_a_tokenizer_of_sentencepieces_form(llama_cpp: Run, tmp_path: Path) -> None:
    lm = random_model(LlamaConfig(**CONFIG | {"vocab_size": 320}))
    lm.tokenizer = sentencepiece_form()
    file = export_gguf(pruner_of(lm), tmp_path, POLICY, type="f16")
    texts = ["the cat sat", "Thé catthe", "a  the cat"]
    found = llama_cpp([{"file": str(file), "prompt": text, "tokens": 1} for text in texts])
    assert [f["prompt"] for f in found] == [lm.tokenizer(text).input_ids for text in texts]


def unevenly_pruned(lm: LanguageModel) -> LivePruner:
    """A layer without attention, one without an FFN, the others cut a little."""
    pruner = pruner_of(lm, LeastSquares(0.01, 0.01), channel_multiple=64)
    drawn = torch.Generator().manual_seed(0)
    kept = pruner.space.units - torch.randint(0, 2, (len(pruner.space),), generator=drawn)
    kept[2 * 14], kept[2 * 20 + 1] = 0, 0
    pruner.apply(kept.tolist())
    return pruner


def test_the_real_model(llama_cpp: Run, smollm2: LanguageModel, tmp_path: Path) -> None:
    pruner, prompt = unevenly_pruned(smollm2), "The capital of France is"
    files = [export_gguf(pruner, tmp_path, POLICY, type=type) for type in ("f16", "q8_0")]
    half, quantised = llama_cpp(
        [{"file": str(file), "prompt": prompt, "tokens": 32} for file in files]
    )
    encoded = smollm2.tokenizer(prompt, return_tensors="pt")
    expected = smollm2.model.generate(**encoded, max_new_tokens=32, do_sample=False)[0]
    assert half["prompt"] == encoded["input_ids"][0].tolist()
    assert half["text"] == smollm2.tokenizer.decode(expected[len(half["prompt"]) :])
    assert len(quantised["tokens"]) == 32 and quantised["text"].strip()
    assert files[1].stat().st_size < 0.6 * files[0].stat().st_size
