import csv
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from matplotlib.figure import Figure
from omegaconf import DictConfig

from ppf.report.loggers import (
    build_loggers,
    finish,
    log_artifact,
    log_figure,
    log_table,
)

CONFIG = {"seed": 0, "model": {"name": "tiny", "layers": [1, 2]}}


@pytest.fixture
def composed(tmp_path: Path):
    """Composes the logger group as stage configs do, with W&B and CSV as the default."""
    folder = tmp_path / "conf"
    folder.mkdir()
    (folder / "main.yaml").write_text(
        "defaults: [{logger: [wandb, csv]}, _self_]\nhydra: {searchpath: [pkg://ppf.conf]}\n"
    )

    def choose(*overrides: str) -> DictConfig:
        with initialize_config_dir(str(folder), version_base="1.3"):
            return compose("main", list(overrides)).logger

    return choose


@pytest.fixture
def keyless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home folder in which W&B finds nothing."""
    for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.mark.parametrize(
    "override, names",
    [
        ("logger=csv", ["csv"]),
        ("logger=wandb", ["wandb"]),
        ("logger=[wandb,csv]", ["wandb", "csv"]),
        ("logger=[csv]", ["csv"]),
        ("logger=none", []),
    ],
)
def test_loggers_compose_one_or_several(composed, override: str, names: list[str]) -> None:
    assert list(composed(override)) == names


def test_the_csv_file_is_in_the_folder_of_the_run(composed, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "search.log").write_text("from Hydra\n")
    loggers = build_loggers(composed("logger=csv"), run, CONFIG)
    assert [type(logger) for logger in loggers] == [CSVLogger]
    loggers[0].log_metrics({"loss": 0.5}, step=7)
    loggers[0].log_metrics({"reward": 1.0}, step=9)
    log_figure(loggers, "plot", Figure(), step=1)
    log_table(loggers, "table", ["a"], [[1]])
    log_artifact(loggers, run / "search.log", "log", "text")
    finish(loggers, failed=False)
    with (run / "metrics.csv").open() as stream:
        assert list(csv.DictReader(stream)) == [
            {"step": "7", "loss": "0.5", "reward": ""},
            {"step": "9", "loss": "", "reward": "1.0"},
        ]
    assert "name: tiny" in (run / "hparams.yaml").read_text()


def test_offline_runs_are_distinct_and_in_their_own_folders(
    composed, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "policy.json"
    policy.write_text("{}")
    figure = Figure()
    figure.add_subplot().plot([1, 2])
    ids = set()
    for job in ("0", "1"):
        loggers = build_loggers(composed(), tmp_path / job, CONFIG)
        wandb = loggers[0]
        assert isinstance(wandb, WandbLogger)
        ids.add(wandb.experiment.id)
        assert wandb.experiment.config["model"] == CONFIG["model"]
        assert wandb.experiment.offline
        for logger in loggers:
            logger.log_metrics({"reward": 1.0}, step=5)
        log_figure(loggers, "curve", figure, step=5)
        log_table(loggers, "candidates", ["name", "nll"], [["a", 3.4], ["b", None]])
        log_artifact(loggers, policy, "policy", "policy")
        finish(loggers, failed=False)
        assert list(tmp_path.glob(f"{job}/wandb/offline-run-*/*.wandb"))
        assert list(tmp_path.glob(f"{job}/wandb/offline-run-*/files/media/images/curve*.png"))
        assert (tmp_path / job / "metrics.csv").is_file()
    assert len(ids) == 2
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
def test_no_key_means_offline_without_a_question(keyless: Path, tmp_path: Path) -> None:
    code = (
        "from omegaconf import OmegaConf as O\n"
        "from ppf.report.loggers import build_loggers, finish\n"
        "cfg = O.load('ppf/conf/logger/wandb.yaml')\n"
        f"finish(build_loggers(cfg, {str(tmp_path / 'run')!r}, {{}}), failed=False)\n"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=root, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.glob("run/wandb/offline-run-*"))


def test_the_environment_or_an_override_sets_the_mode(composed, keyless: Path, monkeypatch) -> None:
    assert composed().wandb.mode == "offline"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert composed().wandb.mode == "disabled"
    assert composed("logger.wandb.mode=online").wandb.mode == "online"


def test_online_without_a_key_is_refused_without_a_question(keyless: Path, tmp_path: Path) -> None:
    code = (
        "from omegaconf import OmegaConf as O\n"
        "from ppf.report.loggers import build_loggers\n"
        "cfg = O.load('ppf/conf/logger/wandb.yaml')\n"
        "cfg.wandb.mode = 'online'\n"
        f"build_loggers(cfg, {str(tmp_path / 'run')!r}, {{}})\n"
    )
    ours, terminal = pty.openpty()
    started = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        stdin=terminal,
        stdout=terminal,
        stderr=subprocess.PIPE,
        text=True,
    )
    _, errors = started.communicate(timeout=120)
    os.close(ours)
    os.close(terminal)
    assert "PPFError('W&B does not start (No API key configured" in errors


def test_disabled_wandb_writes_nothing(composed, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    loggers = build_loggers(composed("logger=wandb"), tmp_path / "run", CONFIG)
    loggers[0].log_metrics({"reward": 1.0}, step=5)
    log_artifact(loggers, __file__, "test", "code")
    finish(loggers, failed=True)
    assert list((tmp_path / "run").rglob("*.wandb")) == []
