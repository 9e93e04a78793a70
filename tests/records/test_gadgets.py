"""Files cannot run code: a class that PPF does not own is refused at every place in a file."""

import json
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig, OmegaConf

import ppf
from ppf.errors import PPFError
from ppf.export.loading import load_folder
from ppf.policy_file import read_policy
from ppf.runtime.search_folder import read_search
from ppf.stages import evaluate, prune
from tests.checkpoints import CHECKPOINTS, pruner_of, random_model
from tests.composing import command_config
from tests.export.conftest import export_folder
from tests.records import examples
from tests.records.examples import places, spoilt

Armed = tuple[dict[str, dict[str, Any]], Path]
FABRIC = Fabric(accelerator="cpu", devices=1)
SECTIONS = ["model.source", "text.source", "space", "importance", "compensation"]
SLOW = [pytest.param(section, marks=pytest.mark.slow) for section in SECTIONS[1:]]


def refuses(read: Callable[[], Any], marker: Path) -> None:
    """The schema refuses what is read; errors of a later step have other sentences."""
    with pytest.raises(PPFError, match=r"(policy\.json|agent\.json): "):
        read()
    assert not marker.exists()


@pytest.mark.parametrize(
    "name", ["sympify", "torch.load", "torch.hub", "joblib", "numpy", "transformers", "nested"]
)
def test_gadgets_run_if_nothing_refuses_them(armed: Armed, marker: Path, name: str) -> None:
    instantiate(armed[0][name])
    assert marker.exists()


def test_gadgets_are_refused_everywhere_in_a_policy_and_an_agent(
    armed: Armed, marker: Path, tmp_path: Path
) -> None:
    """At each place one of them; `test_prune_serve_and_evaluate_run_none` tries all."""
    policy, agent = tmp_path / "policy.json", tmp_path / "agent.json"
    each = cycle(armed[0].values())
    for place in places(examples.policy()):
        policy.write_text(json.dumps(spoilt(examples.policy(), place, next(each))))
        refuses(lambda: read_policy(policy, ()), marker)
    for place in places(examples.agent()):
        agent.write_text(json.dumps(spoilt(examples.agent(), place, next(each))))
        refuses(lambda: ppf.load_agent(tmp_path), marker)


def test_nowhere_in_the_config_of_an_exported_folder(
    armed: Armed, marker: Path, tmp_path: Path
) -> None:
    """What is not ours to check may be ignored, but is never called."""
    pruner = pruner_of(random_model(CHECKPOINTS["llama-groups-of-3-tied"]))
    export_folder(pruner, tmp_path, examples.policy())
    file = tmp_path / "config.json"
    good = json.loads(file.read_text())
    each = cycle([armed[0]["sympify"], armed[0]["transformers"]])
    for place in places(good):
        file.write_text(json.dumps(spoilt(good, place, next(each))))
        with suppress(PPFError):
            load_folder(tmp_path, torch.float32)
        assert not marker.exists()


@cache
def composed(command: str) -> DictConfig:
    return command_config(command, ["paths.run=?"])


def config(command: str, folder: Path, **given: Path) -> DictConfig:
    """A command's config, whose run and artefacts are in a folder."""
    cfg = composed(command).copy()
    cfg.paths.run = cfg.paths.artefacts = str(folder)
    return OmegaConf.merge(cfg, {key: str(value) for key, value in given.items()})


@pytest.mark.parametrize("section", [SECTIONS[0], *SLOW])
def test_prune_serve_and_evaluate_run_none(
    armed: Armed, marker: Path, tmp_path: Path, section: str
) -> None:
    """By the functions that the commands call."""
    (tmp_path / "config.json").write_text("{}")
    file, at = tmp_path / "policy.json", ("config", *section.split("."))
    serving = config("runtime", tmp_path, search=tmp_path)
    pruning = config("prune", tmp_path, policy=file, out=tmp_path / "out")
    evaluating = config("evaluate", tmp_path, path=tmp_path)
    for gadget in armed[0].values():
        file.write_text(json.dumps(spoilt(examples.policy(), at, gadget)))
        refuses(lambda: prune.main(pruning, FABRIC), marker)
        refuses(lambda: read_search(serving, FABRIC), marker)
        refuses(lambda: evaluate.main(evaluating, FABRIC), marker)
    file.unlink()
    for gadget in armed[0].values():
        (tmp_path / "agent.json").write_text(json.dumps(spoilt(examples.agent(), at, gadget)))
        refuses(lambda: read_search(serving, FABRIC), marker)
