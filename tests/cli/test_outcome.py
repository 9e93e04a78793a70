"""A job that has finished is found by its config."""

import json
import math
import os
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

import ppf
from ppf.cli import outcome
from ppf.cli.outcome import Job, set_aside
from ppf.records.run import Outcome
from tests.hub import NEW, OLD, REPOSITORY, downloaded


@cache
def composed(*overrides: str) -> DictConfig:
    with initialize_config_module("ppf.conf", version_base="1.3"):
        return compose("search", ["paths.run=?", "model=tiny", *overrides])


def config(folder: Path, *overrides: str) -> DictConfig:
    cfg = composed(*overrides).copy()
    cfg.paths.run = str(folder)
    return cfg


def write(command: str, cfg: DictConfig, outcome: Outcome, seconds: float) -> None:
    Job(command, cfg).write(outcome, seconds)


def finished(command: str, cfg: DictConfig) -> Mapping[str, Any] | None:
    return Job(command, cfg).finished()


@pytest.fixture
def done(tmp_path: Path) -> Path:
    rows = [{"ratio": 0.3, "test_ppl": math.inf, "labelling_ppl": 1e120}]
    write("search", config(tmp_path), Outcome(3.5, rows), seconds=1.5)
    return tmp_path


def test_a_record_tells_what_was_found(done: Path) -> None:
    found = finished("search", config(done))
    assert found is not None and found["metric"] == 3.5
    assert found["version"].startswith(ppf.__version__)
    # Infinity is no JSON, and reports could not add up numbers of this size.
    assert found["figures"] == [{"ratio": 0.3, "test_ppl": None, "labelling_ppl": None}]


def test_a_record_that_is_set_aside_comes_back_until_another_job_has_written(done: Path) -> None:
    (done / ".hydra").mkdir()
    set_aside(done)
    assert not (done / "run.json").exists()
    assert finished("search", config(done)) is not None and (done / "run.json").is_file()
    set_aside(done)
    assert finished("search", config(done, "ratio=0.4")) is None
    (done / "policy.json").touch()  # by the other job, which is killed then
    assert finished("search", config(done)) is None


@pytest.mark.parametrize(("name", "same"), [("model/model.safetensors", False), ("wandb/a", True)])
def test_a_model_that_another_job_has_begun_to_write_counts(
    done: Path, name: str, same: bool
) -> None:
    (done / ".hydra").mkdir()
    (done / name).parent.mkdir()
    set_aside(done)
    (done / name).touch()
    os.utime(done / name, (time.time() + 9,) * 2)
    assert (finished("search", config(done)) is not None) == same


def test_ranks_agree_whether_a_job_has_finished(
    done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another rank puts the record back between two reads of this one."""
    (done / ".hydra").mkdir()
    set_aside(done)
    read, files = outcome.read, list[Path]()

    def slow(file: Path, *given: Any) -> Any:
        files.append(file)
        if len(files) == 2:
            file.replace(done / "run.json")
        return read(file, *given)

    monkeypatch.setattr(outcome, "read", slow)
    assert finished("search", config(done)) is not None and len(files) == 3


def test_a_file_that_changes_during_the_run_counts_as_it_was_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppf.cli.outcome.is_multirun", lambda: True)
    text = tmp_path / "text.jsonl"
    text.write_text("one")
    cfg = config(tmp_path, f"text.path={text}")
    cfg.paths.cache = str(tmp_path)
    job = Job("search", cfg)
    text.write_text("another")
    job.write(Outcome(3.5), seconds=1.5)
    assert finished("search", cfg) is None


@pytest.mark.parametrize(
    ("override", "same"),
    [
        ("ratio=0.4", False),
        ("labels.count=64", False),
        ("predictor.noise=0.1", False),
        ("seed=1", False),
        ("fabric.accelerator=cpu", True),
        ("logger=none", True),
        ("paths.artefacts=elsewhere", True),
        ("traceback=true", True),
    ],
)
def test_only_what_changes_the_result_counts(done: Path, override: str, same: bool) -> None:
    assert (finished("search", config(done, override)) is not None) == same


def test_the_number_format_of_this_machine_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for dtype, same in (("auto", False), ("float32", True)):
        cfg = config(tmp_path, f"model.dtype={dtype}")
        monkeypatch.setattr("ppf.llm.loading._fast_bfloat16", lambda device: False)
        write("search", cfg, Outcome(3.5), seconds=1.5)
        assert finished("search", cfg) is not None
        monkeypatch.setattr("ppf.llm.loading._fast_bfloat16", lambda device: True)
        assert (finished("search", cfg) is not None) == same


def test_a_job_of_several_processes_is_found_before_they_are_connected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    several = "fabric.accelerator=cpu", "fabric.devices=2"
    cfg = config(tmp_path, "model.dtype=auto", *several)
    with monkeypatch.context() as connected:
        connected.setattr("torch.distributed.is_initialized", lambda: True)
        connected.setattr("torch.distributed.get_world_size", lambda: 2)
        write("search", cfg, Outcome(3.5), seconds=1.5)
    assert finished("search", cfg) is not None


def test_another_machine_counts_if_prices_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for budget, same in (("params", True), ("latency", False)):
        monkeypatch.setattr("platform.node", lambda: "here")
        write("search", config(tmp_path, f"budget={budget}"), Outcome(3.5), seconds=1.5)
        assert finished("search", config(tmp_path, f"budget={budget}")) is not None
        monkeypatch.setattr("platform.node", lambda: "elsewhere")
        assert (finished("search", config(tmp_path, f"budget={budget}")) is not None) == same


@pytest.mark.parametrize(
    "override",
    [
        "text.path={}/file.parquet",
        "text.training.more.path={}/file.parquet",
        "search.start={}/file.parquet",
        "model.path={}",
        "+text.source.path={}",
        "+text.source.data_files={{train: '{}/*.parquet'}}",
        "+text.training.source={{data_files: {{training: [{}/file.parquet]}}}}",
    ],
)
def test_a_changed_file_or_folder_counts(
    tmp_path: Path, override: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppf.cli.outcome.is_multirun", lambda: True)
    folder = tmp_path / "folder"
    file = folder / ("file.json" if "model" in override else "file.parquet")
    folder.mkdir()
    file.write_text("one")
    cfg = config(tmp_path, override.format(folder))
    cfg.paths.cache = str(tmp_path)
    write("search", cfg, Outcome(3.5), seconds=1.5)
    assert finished("search", cfg) is not None
    file.write_text("another")
    assert finished("search", cfg) is None


def test_changed_tasks_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppf.cli.outcome.is_multirun", lambda: True)
    (tmp_path / "tasks").mkdir()
    task = tmp_path / "tasks" / "own.yaml"
    task.write_text("task: own")
    with initialize_config_module("ppf.conf", version_base="1.3"):
        given = [f"paths.run={tmp_path}", "path=p", f"tasks=[{tmp_path}/tasks]"]
        cfg = compose("evaluate", [*given, f"paths.cache={tmp_path}"])
    write("evaluate", cfg, Outcome(3.5), seconds=1.5)
    assert finished("evaluate", cfg) is not None
    task.write_text("task: another")
    assert finished("evaluate", cfg) is None


def test_a_changed_agent_counts_however_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppf.cli.outcome.is_multirun", lambda: True)
    found = tmp_path / "found"
    found.mkdir()
    (found / "agent.json").write_text("{}")
    policies = found / "agent.safetensors"
    policies.write_text("one")
    cfg = config(tmp_path / "run", f"++sampler.of.agent.path={found}/agent.json")
    cfg.paths.cache = str(tmp_path)
    write("collect", cfg, Outcome(3.5), seconds=1.5)
    assert finished("collect", cfg) is not None
    policies.write_text("another")
    assert finished("collect", cfg) is None


def test_a_job_whose_folder_was_moved_is_not_repeated(tmp_path: Path) -> None:
    write("prune", config(tmp_path / "here", "+out=${paths.run}/model"), Outcome(), seconds=1.5)
    (tmp_path / "here").rename(tmp_path / "there")
    assert finished("prune", config(tmp_path / "there", "+out=${paths.run}/model")) is not None
    assert finished("prune", config(tmp_path / "there", f"+out={tmp_path}/here/model")) is None


def test_another_commands_record_does_not_count(done: Path) -> None:
    assert finished("train", config(done)) is None


def test_a_damaged_record_counts_as_missing(done: Path) -> None:
    (done / "run.json").write_text(json.dumps({"metric": 3.5}))
    assert finished("search", config(done)) is None


def test_a_job_is_repeated_with_a_newer_commit(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = tmp_path / "hub"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    downloaded(tmp_path / "model", hub, OLD)
    cfg = config(tmp_path, "model=qwen2_5_0_5b", f"model.source.repository={REPOSITORY}")
    write("search", cfg, Outcome(3.5), seconds=1.0)
    assert finished("search", cfg) is not None
    downloaded(tmp_path / "model", hub, NEW)
    assert finished("search", cfg) is None
