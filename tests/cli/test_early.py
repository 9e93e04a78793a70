"""A text that does not fit a model is told before the calibration text is read."""

import json
from pathlib import Path
from typing import Any

import pytest
from lightning import Fabric
from omegaconf import DictConfig, OmegaConf

from ppf.conf import plain
from ppf.errors import PPFError
from ppf.pruning.observed import Observed
from ppf.pruning.signatures import recorded, signatures
from ppf.stages import evaluate
from tests.articles import write_articles
from tests.composing import command_config
from tests.records import examples
from tests.searched import QUICK


@pytest.fixture(autouse=True)
def _no_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def observe(*arguments: object) -> None:
        raise AssertionError("the long work has begun")

    monkeypatch.setattr(Observed, "make", observe)


def config(command: str, folder: Path, cache: str, *overrides: str) -> DictConfig:
    paths = [f"paths.run={folder}", f"paths.artefacts={folder}", f"paths.cache={cache}"]
    return command_config(command, [*paths, "fabric=cpu", "logger=none", *overrides])


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
