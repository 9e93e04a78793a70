"""Sweepers and launchers of the extra `sweep`, each with a real command on the tiny model."""

import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from submitit import SlurmJob

from tests.cli.conftest import Run


def rows(folder: Path) -> list[dict]:
    (results,) = folder.rglob("results.json")
    return json.loads(results.read_text())["rows"]


@pytest.mark.slow
def test_optuna_lowers_the_error_and_goes_on(
    run: Run, quick: tuple[str, ...], tmp_path: Path
) -> None:
    given = ("train", "-m", "hparams_search=predictor_optuna", *quick, "test_policies=16",
             "predictor.members=2", "trainer.max_epochs=2")  # fmt: skip
    run(*given, "hydra.sweeper.n_trials=1")
    said = run(*given, "hydra.sweeper.n_trials=3").stdout
    assert said.count("Already finished") == 1
    (best,) = tmp_path.rglob("optimization_results.yaml")
    found = rows(tmp_path)
    assert len(found) == 3
    assert OmegaConf.load(best).best_value == pytest.approx(found[0]["nmse"])
    assert best.with_name("report.html").is_file()


@pytest.mark.slow
def test_optuna_goes_on_after_a_failed_trial(run: Run, quick: tuple[str, ...]) -> None:
    given = ("hparams_search=predictor_optuna", *quick, "space.channel_multiple=choice(7,16)",
             "test_policies=16", "predictor.members=2", "trainer.max_epochs=2")  # fmt: skip
    done = run("train", "-m", *given, "hydra.sweeper.n_trials=4", ok=False)
    assert "does not divide" in done.stderr and "Failed" not in done.stderr
    assert "has no metric: Optuna goes on without this trial." in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local"])
def test_jobs_run_in_processes_of_their_own(
    run: Run, quick: tuple[str, ...], tmp_path: Path, launcher: str
) -> None:
    said = run("collect", "-m", f"hydra/launcher={launcher}", *collecting(quick))
    assert "Traceback" not in said.stdout + said.stderr
    assert len(rows(tmp_path)) == 1


def collecting(quick: tuple[str, ...]) -> list[str]:
    """The same without `debug`, which `collect.py` does not take."""
    parts = "{calibration:4,labelling:2,test:2}"
    limits = ["labels.count=4", "text.window=64", f"text.windows={parts}"]
    return [*(word for word in quick if not word.startswith("debug")), *limits]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm's commands, which accept jobs and never run them."""
    bin = tmp_path / "bin"
    bin.mkdir()
    for name, answer in {"sbatch": "Submitted batch job 7", "srun": ""}.items():
        (bin / name).write_text(f"#!/bin/sh\necho {answer}\n")
        (bin / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin}:{os.environ['PATH']}")
    monkeypatch.setattr(SlurmJob, "results", lambda job: [SimpleNamespace(return_value=None)])


@pytest.mark.slow
@pytest.mark.usefixtures("slurm")
def test_slurm_gets_a_script(run: Run, quick: tuple[str, ...], tmp_path: Path) -> None:
    asked = {"nodes": 2, "tasks_per_node": 8, "gpus_per_node": 8, "timeout_min": 90}
    launcher = [f"hydra.launcher.{key}={value}" for key, value in asked.items()]
    run("search", "-m", "hydra/launcher=submitit_slurm", *launcher, "ratio=0.2,0.3", *quick)
    script = next(tmp_path.rglob("*submission*.sh"))
    subprocess.run(["bash", "-n", str(script)], check=True)
    text = script.read_text()
    wanted = ("array=0-1%2", "nodes=2", "ntasks-per-node=8", "gpus-per-node=8", "time=90")
    assert [line for line in wanted if f"#SBATCH --{line}\n" not in text] == []
    assert "\nsrun " in text
