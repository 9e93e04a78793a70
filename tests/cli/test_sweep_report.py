"""The table of a multirun has the multirun's own jobs."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf

from ppf.cli.sweep import SweepReport
from tests.report.test_sweep import job


def multirun(folder: Path) -> tuple[SweepReport, Callable[[str], None]]:
    """A multirun that has begun, and what begins one of its jobs."""
    report = SweepReport()
    report.on_multirun_start(OmegaConf.create({}))

    def begin(name: str) -> None:
        job = {"runtime": {"output_dir": str(folder / name)}, "job": {"num": 0}}
        own = {"mode": RunMode.MULTIRUN, "overrides": {"task": []}, **job}
        report.on_job_start(OmegaConf.create({"hydra": own}))

    return report, begin


def end(report: SweepReport, folder: Path) -> None:
    report.on_multirun_end(OmegaConf.create({"hydra": {"sweep": {"dir": str(folder)}}}))


def test_only_jobs_of_this_multirun_fail_it(tmp_path: Path) -> None:
    earlier, begin = multirun(tmp_path)
    begin("ratio-1.5")
    report, begin = multirun(tmp_path)
    job(tmp_path, ["ratio-0.3"], {"nmse": 0.5})
    begin("ratio-0.3")
    end(report, tmp_path)
    with pytest.raises(SystemExit):  # it may run at the same time
        end(earlier, tmp_path)
    begin("ratio-0.4")
    with pytest.raises(SystemExit):
        end(report, tmp_path)


def test_a_damaged_record_fails_the_multirun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report, begin = multirun(tmp_path)
    job(tmp_path, ["ratio-0.3"], {"nmse": 0.5})
    begin("ratio-0.3")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "run.json").write_text('{"metric": 3.5}')
    with pytest.raises(SystemExit):
        end(report, tmp_path)
    told = capsys.readouterr().err
    assert told.startswith("Error: the multirun has no report: ") and "other/run.json" in told


@pytest.mark.parametrize(
    ("out", "task", "params", "refused"),
    [
        ("model", ["out=model", "tune=full,lora"], None, True),
        ("model", ["out=model"], {"tune": "full,lora"}, True),
        ("model", ["out=model", "tune=[full,lora]"], {"tune": "full"}, False),
        ("model/${hydra:job.num}", ["out=model/${hydra:job.num}", "tune=full,lora"], None, False),
        ("at/${seed}", ["out=at/${seed}", "seed=0,1"], None, False),
        ("at/${seed}", ["out=at/${seed}", "seed=0,1", "tune=full,lora"], None, True),
        ("a", ["out=a,b"], None, False),
        ("${paths.run}/model", ["policy=p,q"], None, False),
        ("${paths.run}/model", ["out=a,b", "policy=p,q"], None, True),
    ],
)
def test_jobs_that_would_write_into_one_folder_are_refused(
    out: str,
    task: list[str],
    params: dict[str, str] | None,
    refused: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:
    own = {"overrides": {"task": task}, "sweeper": {"params": params}}
    config = OmegaConf.create({"out": out, "hydra": own})
    with pytest.raises(SystemExit) if refused else nullcontext():
        SweepReport().on_multirun_start(config)
    error = capsys.readouterr().err
    assert error.startswith("Error: jobs would overwrite each other's models: do not") == refused
