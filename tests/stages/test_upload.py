"""Nothing is uploaded without `push_to_hub=`, and no other file than those of an export."""

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from omegaconf import DictConfig, OmegaConf

from ppf.errors import PPFError
from ppf.stages import upload as module
from ppf.stages.upload import check_upload, upload


@pytest.fixture(autouse=True)
def hub(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Notes what is sent to the hub."""
    made = Mock()
    made.create_repo.return_value = SimpleNamespace(repo_id="someone/a-model")
    monkeypatch.setattr(module, "HfApi", lambda: made)
    monkeypatch.setattr(module, "get_token", lambda: "a token")
    return made


def config(folder: Path, name: str | None, *, dry: bool = False) -> DictConfig:
    return OmegaConf.create(
        {"out": str(folder), "push_to_hub": name, "push_to_hub_dry_run": dry, "export": None}
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a-q8_0.gguf", "policy.json", "README.md", "notes.txt", ".env"):
        (tmp_path / name).write_text("x" * 2**20)
    return tmp_path


def test_without_a_name_nothing_is_uploaded(folder: Path, hub: Mock) -> None:
    check_upload(config(folder, None))
    upload(config(folder, None))
    assert not hub.mock_calls


def test_a_dry_run_lists_the_files(
    folder: Path, hub: Mock, capsys: pytest.CaptureFixture[str]
) -> None:
    upload(config(folder, "a-model", dry=True))
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "Would upload to a-model:" and not hub.mock_calls
    assert [line.split() for line in said[1:]] == [
        ["1.0", "MiB", name] for name in ("README.md", "a-q8_0.gguf", "policy.json")
    ]


def test_only_exported_files_are_uploaded_to_a_private_repository(folder: Path, hub: Mock) -> None:
    upload(config(folder, "a-model"))
    (_, name, made), (_, _, sent) = hub.mock_calls
    assert name == ("a-model",) and made["private"] and made["exist_ok"]
    assert sent["repo_id"] == "someone/a-model" and sent["folder_path"] == folder
    assert sent["allow_patterns"] == ["README.md", "a-q8_0.gguf", "policy.json"]


def test_what_cannot_be_uploaded_is_told_before_the_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(PPFError, match="push_to_hub=a//b names no repository"):
        check_upload(config(folder, "a//b"))
    monkeypatch.setattr(module, "get_token", lambda: None)
    check_upload(config(folder, "a-model", dry=True))
    with pytest.raises(PPFError, match="needs an account: run `hf auth login`"):
        check_upload(config(folder, "a-model"))


def test_a_failed_upload_says_where_the_model_is(folder: Path, hub: Mock) -> None:
    hub.upload_folder.side_effect = OSError("no network")
    with pytest.raises(PPFError, match=f"the model is in {folder}.*no network.*hf upload a-model"):
        upload(config(folder, "a-model"))
