"""Commands name what they read as the command that made it has named it."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig, OmegaConf

from ppf.stages import lineage
from tests.agents.test_ratio_agent import ratio_agent
from tests.records import examples


def config(**given: object) -> DictConfig:
    return OmegaConf.create({"policy": None, "path": None, "trust_targets": []} | given)


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is logged: files, name, kind, and whether it is used."""
    found = []

    def log(_: Any, files: Any, name: str, kind: str, *, used: bool = False) -> None:
        found.append(([path.name for path in files], name, kind, used))

    monkeypatch.setattr(lineage, "log_artifact", log)
    return found


def test_files_are_read_under_the_name_of_the_command_that_made_them(
    tmp_path: Path, logged: list[Any]
) -> None:
    policy, agent = tmp_path / "policy.json", ratio_agent().save(tmp_path)
    policy.write_text(json.dumps(examples.policy()))
    lineage.log_used(config(policy=str(policy)), [])
    assert logged == [(["policy.json"], "tiny-policy", "policy", True)]
    for search in (tmp_path, agent):  # a file may be given in place of its folder
        lineage.log_used(config(search=str(search)), [])
        assert logged[-1] == (["agent.json", "agent.safetensors"], "tiny-agent", "agent", True)
    lineage.log_used(config(path=["a/dense", str(tmp_path / "pruned")]), [])
    assert [(name, used) for _, name, _, used in logged[3:]] == [("dense", True), ("pruned", True)]


def test_offline_runs_carry_their_lineage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal files are one version, which joins the run that makes a policy to its users."""
    made = dict[bool, Any]()
    for used in (False, True):
        policy, folder = tmp_path / f"{used}" / "policy.json", tmp_path / f"{used}" / "pruned"
        folder.mkdir(parents=True)
        policy.write_text("{}")
        (folder / "model.safetensors").write_text("weights")
        logged = list[tuple[Any, bool]]()
        run = SimpleNamespace(
            disabled=False,
            _log_artifact=lambda made, use_after_commit: logged.append((made, use_after_commit)),  # noqa: B023
        )
        monkeypatch.setattr(WandbLogger, "experiment", run)
        logger = WandbLogger(save_dir=tmp_path, mode="offline")
        lineage.log_artifact([logger], [policy], "tiny größe", "policy", used=used)
        lineage.log_artifact([logger], [folder], "m" * 200, "model")
        (made[used], uses), (model, also_uses) = logged
        assert (made[used].name, made[used].type, uses) == ("tiny_gr__e", "policy", used)
        assert (len(model.name), model.type, also_uses) == (128, "model", False)
        (entry,) = model.manifest.entries.values()
        assert entry.ref.endswith("pruned/model.safetensors"), "weights are not uploaded"
    assert made[False].digest == made[True].digest
