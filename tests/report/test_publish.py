"""What each logger keeps of a run's results, read back from its files."""

import csv
import json
import time
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
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
    return Page("found", "A sentence.", sections, {"command": "command"})


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
    """Equal files are one version, which joins the run that makes a policy to its users."""
    made = {}
    for job in ("makes", "uses"):
        (tmp_path / job).mkdir()
        policy, folder = tmp_path / job / "policy.json", tmp_path / job / "pruned"
        policy.write_text("{}")
        folder.mkdir()
        (folder / "model.safetensors").write_text("weights")
        logger = wandb(tmp_path / job / "run")
        log_artifact([logger], [policy], "tiny größe", "policy", used=job == "uses")
        log_artifact([logger], [folder], "m" * 200, "model")
        _finish([logger], failed=False)
        found = records(tmp_path / job / "run")
        made[job], model = (record.artifact for record in found if record.HasField("artifact"))
        assert (made[job].name, made[job].type) == ("tiny_gr__e", "policy")
        assert (len(model.name), model.type, model.use_after_commit) == (128, "model", False)
        (entry,) = model.manifest.contents
        assert entry.ref.endswith("pruned/model.safetensors"), "weights are not uploaded"
    assert made["makes"].digest == made["uses"].digest
    assert (made["makes"].use_after_commit, made["uses"].use_after_commit) == (False, True)


def test_csv_keeps_tables(found: Page, tmp_path: Path) -> None:
    publish(tmp_path, [CSVLogger(tmp_path, "csv", "")], found, METRICS)
    with (tmp_path / "csv" / "results.csv").open() as stream:
        assert list(csv.reader(stream)) == [["policy", "nll"], ["a", "3.44"], ["b", ""]]


def test_other_loggers_get_metrics_by_names_that_mlflow_takes(found: Page, tmp_path: Path) -> None:
    logged: dict[str, float] = {}

    class Other(DummyLogger):
        def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
            logged.update(metrics)

    publish(tmp_path, [Other()], found, METRICS | {"a (2)/b,c": 1.0})
    assert logged == {"PPF/perplexity/0.3": 31.0, "a _2_/b_c": 1.0}
