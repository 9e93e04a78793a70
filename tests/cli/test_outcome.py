"""A job that has finished is found by its config."""

import json
import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

import ppf
from ppf.cli import outcome
from ppf.cli.outcome import job_signature
from ppf.stages.outcome import Outcome
from tests.composing import command_config


@cache
def composed() -> DictConfig:
    return command_config("search", ["paths.run=?", "model=tiny"])


def config(folder: Path, **changes: Any) -> DictConfig:
    """The config of a run in a folder; dots in the keys of changes are written as "__"."""
    cfg = composed().copy()
    cfg.paths.run, cfg.paths.cache = str(folder), str(folder.parent)
    for key, value in changes.items():
        OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True)
    return cfg


def write(command: str, cfg: DictConfig, result: Outcome) -> None:
    folder = Path(cfg.paths.run)
    outcome.write(folder, command, job_signature(command, cfg), result, seconds=1.5)


def finished(command: str, cfg: DictConfig) -> Mapping[str, Any] | None:
    return outcome.finished(Path(cfg.paths.run), job_signature(command, cfg))


@pytest.fixture
def done(tmp_path: Path) -> Path:
    rows = [{"ratio": 0.3, "test_ppl": math.inf, "labelling_ppl": math.nan}]
    write("search", config(tmp_path / "run"), Outcome(3.5, rows))
    return tmp_path / "run"


def test_a_record_tells_what_was_found(done: Path) -> None:
    found = finished("search", config(done))
    assert found is not None and found["metric"] == 3.5
    assert found["version"].startswith(ppf.__version__)
    # Neither is JSON.
    assert found["figures"] == [{"ratio": 0.3, "test_ppl": None, "labelling_ppl": None}]


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"ratio": 0.4}, False),
        ({"predictor__noise": 0.1}, False),
        ({"seed": 1}, False),
        ({"logger": {}}, True),
        ({"paths__artefacts": "elsewhere"}, True),
    ],
)
def test_only_what_changes_the_result_counts(
    done: Path, change: dict[str, Any], same: bool
) -> None:
    assert (finished("search", config(done, **change)) is not None) == same


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("text__path", "{}/file.parquet"),
        ("model__path", "{}"),
        ("text__source__data_files", {"train": "{}/*.parquet"}),
        ("tasks", ["arc_easy", "{}"]),
    ],
)
def test_a_changed_file_or_folder_counts_as_it_was_before_the_run(
    tmp_path: Path, key: str, value: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppf.cli.outcome.is_multirun", lambda: True)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "file.parquet").write_text("one")
    named = json.loads(json.dumps(value).replace("{}", str(folder)))
    cfg = config(tmp_path / "run", **{key: named})
    before = job_signature("search", cfg)
    (folder / "file.parquet").write_text("another")
    outcome.write(tmp_path / "run", "search", before, Outcome(3.5), seconds=1.5)
    assert finished("search", cfg) is None
    (folder / "file.parquet").write_text("one")
    assert finished("search", cfg) is not None


def test_a_model_that_the_job_has_written_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppf.cli.outcome.is_multirun", lambda: True)
    cfg = config(tmp_path / "run", out=f"{tmp_path}/model")
    write("prune", cfg, Outcome())
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert finished("prune", cfg) is not None


def test_a_job_whose_folder_was_moved_is_not_repeated(tmp_path: Path) -> None:
    write("prune", config(tmp_path / "here", out="${paths.run}/model"), Outcome())
    (tmp_path / "here").rename(tmp_path / "there")
    assert finished("prune", config(tmp_path / "there", out="${paths.run}/model")) is not None
    assert finished("prune", config(tmp_path / "there", out=f"{tmp_path}/here/model")) is None


def test_a_record_of_another_command_and_a_damaged_one_do_not_count(done: Path) -> None:
    assert finished("train", config(done)) is None
    (done / "run.json").write_text(json.dumps({"metric": 3.5}))
    assert finished("search", config(done)) is None
