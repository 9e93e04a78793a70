import os
from pathlib import Path

import pytest
from lightning.pytorch.loggers import WandbLogger
from omegaconf import DictConfig

from ppf.report.loggers import open_loggers
from tests.composing import command_config

CONFIG = {"seed": 0, "model": {"name": "tiny", "layers": [1, 2]}}


def composed(*overrides: str) -> DictConfig:
    """The loggers of a command; W&B and CSV are the default."""
    return command_config("search", list(overrides)).logger


@pytest.mark.slow
def test_offline_runs_are_distinct_and_in_their_own_folders(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    ids = set()
    for job in ("0", "1"):
        with open_loggers(composed(), tmp_path / job, CONFIG) as loggers:
            wandb = loggers[0]
            assert isinstance(wandb, WandbLogger)
            ids.add(wandb.experiment.id)
            assert wandb.experiment.config["model"] == CONFIG["model"]
            assert wandb.experiment.offline
            for logger in loggers:
                logger.log_metrics({"reward": 1.0}, step=5)
        assert list(tmp_path.glob(f"{job}/wandb/offline-run-*/*.wandb"))
        assert (tmp_path / job / "csv" / "metrics.csv").is_file()
    assert len(ids) == 2
    assert capfd.readouterr() == ("", "")


def test_without_a_key_online_is_refused_without_a_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    assert composed().wandb.mode == "offline"
    online = composed("logger=wandb", "logger.wandb.mode=online")
    with pytest.raises(Exception, match="No API key"), open_loggers(online, tmp_path, CONFIG):
        pass
    monkeypatch.setenv("WANDB_MODE", "disabled")
    with open_loggers(composed("logger=wandb"), tmp_path / "run", CONFIG) as loggers:
        loggers[0].log_metrics({"reward": 1.0}, step=5)
    assert list((tmp_path / "run").rglob("*.wandb")) == []


def test_loggers_end_if_the_next_one_cannot_start(tmp_path: Path) -> None:
    import wandb

    cfg = {**composed("logger=[csv,wandb]"), "other": {"_target_": "builtins.int"}}
    with pytest.raises(Exception, match="save_dir"), open_loggers(cfg, tmp_path / "run", CONFIG):
        pass
    assert wandb.run is None
