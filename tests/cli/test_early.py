"""What a command cannot do with a model or a text is told before the calibration text is read."""

import json
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from lightning import Fabric
from omegaconf import DictConfig, OmegaConf

from ppf.conf import plain
from ppf.errors import PPFError
from ppf.llm.sources import byte_tokenizer
from ppf.pruning.observed import Observed
from ppf.pruning.signatures import recorded, signatures
from ppf.stages import evaluate, prune
from tests.articles import write_articles
from tests.checkpoints import CHECKPOINTS, random_model
from tests.records import examples
from tests.searched import QUICK


@pytest.fixture(autouse=True)
def _no_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def observe(*arguments: object) -> None:
        raise AssertionError("the long work has begun")

    monkeypatch.setattr(Observed, "make", observe)


@pytest.fixture
def opt(tmp_path: Path) -> list[str]:
    """The overrides of a model of another family."""
    folder = tmp_path / "opt"
    random_model(CHECKPOINTS["opt-32-heads-tied"]).model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return [f"model.path={folder}", "space.channel_multiple=32"]


def config(command: str, folder: Path, cache: str, *overrides: str) -> DictConfig:
    paths = [f"paths.run={folder}", f"paths.artefacts={folder}", f"paths.cache={cache}"]
    with initialize_config_module("ppf.conf", version_base="1.3"):
        return compose(command, [*paths, "fabric=cpu", "logger=none", *overrides])


def searching(folder: Path, cache: str, *overrides: str) -> DictConfig:
    text = (f"text.path={write_articles(folder)}", "text.windows.test=2")
    return config("search", folder, cache, "model=tiny", *QUICK, *text, *overrides)


def record(cfg: DictConfig) -> dict[str, Any]:
    """A policy.json of a search with this config."""
    found = signatures(cfg)
    own = {"signatures": vars(found) | {"predictor": "0"}, "config": plain(recorded(cfg))}
    return examples.policy() | own


def one_process() -> Fabric:
    return Fabric(accelerator="cpu", devices=1)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["window=64", "stride=128"], "give at least two tokens, window ≥ 2 and 1 ≤ stride"),
        (["latency=true", "speed.prompt=100000"], "exceeds the model's 1024 positions"),
        (["text=wikipedia_sample", "text.windows.test=100000"], "lower text.windows.test"),
    ],
)
def test_an_evaluation(overrides: list[str], sentence: str, cache: str, tmp_path: Path) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text(json.dumps(record(searching(tmp_path, cache))))
    cfg = config("evaluate", tmp_path, cache, f"policy={policy}", *overrides)
    if cfg.get("text"):
        OmegaConf.update(cfg, "text.path", str(tmp_path / "text.txt"))
    with pytest.raises(PPFError, match=sentence):
        evaluate.main(cfg, one_process())


def pruning(found: dict[str, Any], folder: Path, cache: str, *overrides: str) -> None:
    file = folder / "policy.json"
    file.write_text(json.dumps(found))
    cfg = config("prune", folder, cache, f"policy={file}", *overrides)
    prune.main(cfg, one_process())


def test_an_export_of_another_family(opt: list[str], cache: str, tmp_path: Path) -> None:
    found = record(searching(tmp_path, cache, *opt))
    with pytest.raises(PPFError, match="export=gguf supports .*, not opt"):
        pruning(found, tmp_path, cache, "export=gguf")


def test_a_format_that_cannot_hold_the_policy(cache: str, tmp_path: Path) -> None:
    found = record(searching(tmp_path, cache))
    with pytest.raises(PPFError, match=r"0\.attention keeps \d of \d KV groups"):
        pruning(found, tmp_path, cache, "export=decilm")
