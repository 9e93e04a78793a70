"""A text that does not fit a model is told before the calibration text is read."""

import json
from pathlib import Path

import pytest
from lightning import Fabric
from omegaconf import DictConfig, OmegaConf

from ppf.conf import plain
from ppf.errors import PPFError
from ppf.pruning.signatures import recorded, signatures
from ppf.stages import evaluate
from tests.articles import write_articles
from tests.composing import command_config
from tests.records import examples
from tests.searched import QUICK


def config(command: str, folder: Path, cache: str, *overrides: str) -> DictConfig:
    paths = [f"paths.run={folder}", f"paths.artefacts={folder}", f"paths.cache={cache}"]
    return command_config(command, [*paths, "fabric=cpu", "logger=none", *overrides])


@pytest.mark.usefixtures("no_long_work")
@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["window=100000"], "give a smaller window, or a longer text"),
        (["latency=true", "speed.prompt=100000"], "exceeds the model's 1024 positions"),
        (["text=wikipedia_sample", "text.windows.test=100000"], "lower text.windows.test"),
    ],
)
def test_an_evaluation(overrides: list[str], sentence: str, cache: str, tmp_path: Path) -> None:
    text = (f"text.path={write_articles(tmp_path)}", "text.windows.test=2")
    searched = config("search", tmp_path, cache, "model=tiny", *QUICK, *text)
    own = {"signatures": vars(signatures(searched)), "config": plain(recorded(searched))}
    (tmp_path / "policy.json").write_text(json.dumps(examples.policy() | own))
    cfg = config("evaluate", tmp_path, cache, f"policy={tmp_path}/policy.json", *overrides)
    if cfg.get("text"):
        OmegaConf.update(cfg, "text.path", str(tmp_path / "text.txt"))
    with pytest.raises(PPFError, match=sentence):
        evaluate.main(cfg, Fabric(accelerator="cpu", devices=1))
