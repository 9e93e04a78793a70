import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from benchmarks.llama_cpp import LlamaCpp, UnavailableError
from ppf.export import Pruned
from ppf.export.gguf import GGUF
from ppf.export.huggingface import HuggingFace
from ppf.export.loading import load_folder
from ppf.pruning import LivePruner
from ppf.pruning.compensation import Bias
from tests.checkpoints import CHECKPOINTS, policies, pruner_of, random_model, random_windows

POLICY: dict[str, Any] = {
    "format": 1,
    "model": "a model",
    "ratio": {"achieved": 0.3},
    "predicted": {"perplexity": 12.5, "interval": [11.25, 13.75]},
    "measured_nll": 2.5625,
    "kept": {"0.attention": 0},
    "units": {"0.attention": 2},
    "config": {
        "model": {"name": "a model", "source": {"repository": "someone/a-model"}},
        "text": {"name": "some text"},
        "importance": {"_target_": "ppf.pruning.importance.Wanda"},
        "compensation": {"_target_": "ppf.pruning.compensation.Bias"},
    },
}
FORMS = (
    "llama-groups-of-3-tied",
    "llama-biases",
    "mistral-sliding-window",
    "gemma3-groups-of-3-capped-logits-untied",
    "opt-32-heads-tied",
    "gpt-neox-32-heads-untied",
)


def export_gguf(pruner: LivePruner, folder: Path, policy: dict[str, Any], *, type: str) -> Path:
    exporter, model = GGUF(type, 0), Pruned.of(pruner)
    exporter.check(model)
    return exporter.write(model, folder, policy)


def export_folder(pruner: LivePruner, folder: Path, policy: dict[str, Any]) -> Path:
    return HuggingFace().write(Pruned.of(pruner), folder, policy)


@pytest.fixture(params=FORMS)
def pruner(request: pytest.FixtureRequest) -> LivePruner:
    """Pruned with bias compensation: the first layer has no attention, the second no FFN."""
    pruner = pruner_of(random_model(CHECKPOINTS[request.param]), Bias())
    kept = policies(pruner.space)["random"]
    pruner.apply([0, kept[1], kept[2], 0, *kept[4:]])
    return pruner


@pytest.fixture
def folder(pruner: LivePruner, tmp_path: Path) -> Path:
    export_folder(pruner, tmp_path / "pruned", POLICY)
    return tmp_path / "pruned"


@pytest.fixture(scope="session")
def llama_cpp(cache: str) -> LlamaCpp:
    """llama.cpp, which the tests that need it skip where it cannot be installed."""
    try:
        return LlamaCpp(Path(cache))
    except UnavailableError as error:
        if os.environ.get("CI") and shutil.which("npm"):
            raise  # only a machine without it may leave these tests out
        pytest.skip(str(error))


def loaded(folder: Path) -> nn.Module:
    """The model of a folder, by transformers and the folder's own code."""
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)


def own(folder: Path) -> Any:
    """The model of a folder, by PPF's own code."""
    return load_folder(folder, torch.float32)[0].eval()


@torch.inference_mode()
def assert_same_logits(model: nn.Module, expected: nn.Module) -> None:
    ids = random_windows()
    torch.testing.assert_close(model(ids).logits, expected(ids).logits, atol=1e-4, rtol=0)


@torch.inference_mode()
def assert_greedy(model: nn.Module, found: dict[str, Any]) -> None:
    """Every token of llama.cpp's answer is the model's best, or ties with it (it computes in f16).

    Args:
        found: token ids of the `prompt`, and the `tokens` that follow it.
    """
    ids = torch.tensor([found["prompt"] + found["tokens"]])
    scores = model(ids).logits[0, len(found["prompt"]) - 1 : -1]
    chosen = scores.gather(1, torch.tensor(found["tokens"])[:, None])[:, 0]
    assert (scores.amax(1) - chosen).max() < 0.02
