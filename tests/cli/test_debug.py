"""The options of `debug=` on the tiny model."""

import csv
from pathlib import Path

import pytest

from tests.cli.conftest import Run


@pytest.mark.slow
def test_overfit_fits_the_labels_without_other_logs(run: Run, text: str, tmp_path: Path) -> None:
    given = (
        "train",
        "model=tiny",
        text,
        "debug=overfit",
        "predictor.members=2",
        "trainer.max_epochs=25",
    )
    run(*given, "predictor=cnn")
    (metrics,) = (tmp_path / "outputs").rglob("metrics.csv")
    with metrics.open() as file:
        losses = [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]
    assert len(losses) > 20 and losses[-1] < 1e-3 * losses[0]
    assert not list(tmp_path.rglob("wandb*"))
    assert "Traceback" in run(*given, "labels.batch=-1", ok=False).stderr
