"""What each logger keeps of a run's results, read back from its files."""

import csv
import json
import time
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from matplotlib.figure import Figure

from ppf.report.loggers import _finish
from ppf.report.page import Page, ReportSection
from ppf.report.publish import log_artifact, publish
from ppf.report.tables import Table

METRICS = {"PPF/perplexity/0.3": 31.0}


@pytest.fixture
def found() -> Page:
    figure = Figure()
    figure.add_subplot().plot([1, 2])
    table = Table([{"policy": "a", "nll": 3.44}, {"policy": "b", "nll": None}])
    sections = [
        ReportSection("Curve", name="curve", figure=figure),
        ReportSection("Results", name="results", table=table),
    ]
    return Page("found", "command", "A sentence.", sections)


def wandb(folder: Path) -> Any:
    folder.mkdir()
    return WandbLogger(save_dir=folder, mode="offline", project="ppf")


def records(folder: Path) -> list[Any]:
    """What an offline run will upload. Its file has the form of LevelDB's logs."""
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = folder.rglob("*.wandb")
    found = parsed(file.read_bytes(), Record)
    for _ in range(300):  # W&B still writes
        if any(record.HasField("exit") for record in found):
            return found
        time.sleep(0.1)
        found = parsed(file.read_bytes(), Record)
    raise AssertionError("W&B has not ended the run")


def parsed(data: bytes, form: Any) -> list[Any]:
    place, parts, found = 7, b"", []
    while place + 7 <= len(data):
        if (room := _BLOCK - place % _BLOCK) < 7:
            place += room
            continue
        size, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (_WHOLE, _LAST):
            found.append(form.FromString(parts))
            parts = b""
    return found


_BLOCK, _WHOLE, _LAST = 1 << 15, 1, 4


def test_wandb_keeps_summary_media_and_tables(found: Page, tmp_path: Path) -> None:
    logger = wandb(tmp_path / "run")
    publish(tmp_path, [logger], found, METRICS)
    assert logger.experiment.summary["PPF/perplexity/0.3"] == 31.0
    _finish([logger], failed=False)
    media = tmp_path / "run"
    assert list(media.rglob("media/images/curve*.png"))
    (page,) = media.rglob("media/html/report*.html")
    assert "A sentence." in page.read_text()
    (table,) = media.rglob("media/table/**/*.json")
    stored = json.loads(table.read_text())
    assert (stored["columns"], stored["data"]) == (["policy", "nll"], [["a", 3.44], ["b", None]])


def test_offline_runs_carry_their_lineage(tmp_path: Path) -> None:
    policy, folder = tmp_path / "policy.json", tmp_path / "pruned"
    policy.write_text("{}")
    folder.mkdir()
    (folder / "model.safetensors").write_text("weights")
    logger = wandb(tmp_path / "run")
    log_artifact([logger], [policy], "tiny größe", "policy", used=True)
    log_artifact([logger], [folder], "pruned", "model")
    _finish([logger], failed=False)
    read, written = (r.artifact for r in records(tmp_path / "run") if r.HasField("artifact"))
    assert (read.name, read.type, read.use_after_commit) == ("tiny_gr__e", "policy", True)
    assert (written.name, written.type, written.use_after_commit) == ("pruned", "model", False)
    (entry,) = written.manifest.contents
    assert entry.ref.endswith("pruned/model.safetensors"), "weights are not uploaded"


def test_long_names_of_artifacts_are_shortened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    logger = wandb(tmp_path / "run")
    for name in ("m" * 128, "m" * 200, "m" * 201):
        log_artifact([logger], [tmp_path / "file"], name, "policy")
    _finish([logger], failed=False)
    names = {r.artifact.name for r in records(tmp_path / "run") if r.HasField("artifact")}
    assert len(names) == 3 and all(len(name) == 128 for name in names)


def test_equal_files_are_one_version_whichever_run_has_them(tmp_path: Path) -> None:
    """This is what joins the run that makes a policy to the run that prunes by it."""
    digests = []
    for job in ("makes", "uses"):
        (tmp_path / job).mkdir()
        policy = tmp_path / job / "policy.json"
        policy.write_text("{}")
        logger = wandb(tmp_path / job / "run")
        log_artifact([logger], [policy], "policy", "policy", used=job == "uses")
        _finish([logger], failed=False)
        (artifact,) = (r.artifact for r in records(tmp_path / job) if r.HasField("artifact"))
        digests.append(artifact.digest)
    assert digests[0] == digests[1]


def test_csv_keeps_tables(found: Page, tmp_path: Path) -> None:
    publish(tmp_path, [CSVLogger(tmp_path, "csv", "")], found, METRICS)
    with (tmp_path / "csv" / "results.csv").open() as stream:
        assert list(csv.reader(stream)) == [["policy", "nll"], ["a", "3.44"], ["b", ""]]


def test_tensorboard_keeps_scalars_and_images(found: Page, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, "board", "")
    publish(tmp_path, [logger], found, METRICS)
    _finish([logger], failed=False)
    read = EventAccumulator(str(tmp_path / "board"))
    read.Reload()
    assert read.Scalars("PPF/perplexity/0.3")[0].value == 31.0
    assert "curve" in read.Tags()["images"]


@pytest.mark.slow
def test_mlflow_keeps_metrics_and_files(found: Page, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    files = tmp_path / "files"
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    logger = MLFlowLogger("ppf", "a run", uri, artifact_location=files.as_uri())
    publish(tmp_path, [logger], found, METRICS | {"a (2)/b,c": 1.0})
    _finish([logger], failed=False)
    run = logger.experiment.get_run(logger.run_id)
    assert run.data.metrics == {"PPF/perplexity/0.3": 31.0, "a _2_/b_c": 1.0}
    assert run.info.run_name == "a run" and run.info.status == "FINISHED"
    names = {file.name for file in files.rglob("*") if file.is_file()}
    assert names == {"report.html"}
