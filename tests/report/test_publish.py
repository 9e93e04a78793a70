"""What each logger keeps of a run's results, read back from its files."""

import csv
import json
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.logger import DummyLogger
from matplotlib.figure import Figure

from ppf.report.loggers import _finish
from ppf.report.page import Page, ReportSection
from ppf.report.publish import publish
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


def test_wandb_keeps_summary_media_and_tables(found: Page, tmp_path: Path) -> None:
    media = tmp_path / "run"
    media.mkdir()
    logger = WandbLogger(save_dir=media, mode="offline", project="ppf")
    publish(tmp_path, [logger], found, METRICS)
    assert logger.experiment.summary["PPF/perplexity/0.3"] == 31.0
    _finish([logger], failed=False)
    assert list(media.rglob("media/images/curve*.png"))
    (page,) = media.rglob("media/html/report*.html")
    assert "A sentence." in page.read_text()
    (table,) = media.rglob("media/table/**/*.json")
    stored = json.loads(table.read_text())
    assert (stored["columns"], stored["data"]) == (["policy", "nll"], [["a", 3.44], ["b", None]])


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
