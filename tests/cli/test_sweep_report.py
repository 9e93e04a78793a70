"""The table of a multirun has the multirun's own jobs."""

import json
import os
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import OmegaConf

from ppf.cli.sweep import SweepReport
from tests.report.test_sweep import job


def begin(folder: Path, seconds: int) -> None:
    file = folder / ".hydra" / "overrides.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    os.utime(file, (seconds, seconds))


def test_numbered_jobs_of_an_earlier_longer_multirun_are_left_out(tmp_path: Path) -> None:
    for name in ("0", "1", "2", "seed-1"):
        if name != "2":  # which was killed
            job(tmp_path, [name], {"nmse": 0.5})
        begin(tmp_path / name, 100)
    report, config = SweepReport(), OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    report.on_multirun_start(config)
    begin(tmp_path / "0", 200)
    report.on_multirun_end(config)
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert {row["job"] for row in rows} == {"0", "seed-1"}


def test_a_job_that_failed_in_an_earlier_multirun_fails_no_later_one(tmp_path: Path) -> None:
    begin(tmp_path / "ratio-1.5", 100)
    report, config = SweepReport(), OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}})
    report.on_multirun_start(config)
    job(tmp_path, ["ratio-0.3"], {"nmse": 0.5})
    begin(tmp_path / "ratio-0.3", 200)
    report.on_multirun_end(config)
    begin(tmp_path / "ratio-0.4", 300)
    with pytest.raises(SystemExit):
        report.on_multirun_end(config)


@pytest.mark.parametrize(
    ("sweeper", "value", "told"),
    [("optuna", None, True), ("optuna", 3.5, False), ("x", None, False)],
)
def test_a_trial_without_a_metric_is_told(
    sweeper: str, value: float | None, told: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    target = {"_target_": f"hydra_plugins.hydra_{sweeper}_sweeper.Sweeper"}
    own = {"sweeper": target, "mode": RunMode.MULTIRUN, "job": {"num": 2}}
    config = OmegaConf.create({"hydra": own})
    done = JobReturn(status=JobStatus.COMPLETED, _return_value=value)
    SweepReport().on_job_end(config, done)
    sentence = "Job 2 has no metric: Optuna goes on without this trial."
    assert (sentence in capsys.readouterr().out) == told
