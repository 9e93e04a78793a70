"""Processes of one run, jobs of a sweep, and commands side by side share labels and predictors."""

import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pyarrow import parquet

from tests.cli.conftest import HASTY, Run

TINY = (
    "model=tiny",
    "sampler=rough",
    "text.windows.labelling=2",
    "text.windows.calibration=8",
    "text.window=128",
    "logger=none",
)


@pytest.mark.slow
def test_two_processes_and_the_jobs_of_a_sweep_label_each_policy_once(
    run: Run, tmp_path: Path
) -> None:
    own = str(tmp_path)
    run("collect", *TINY, "fabric.devices=2", "labels.count=48", artefacts=own, process=True)
    (folder,) = (tmp_path / "labels").iterdir()

    swept = run("collect", "-m", *TINY, "labels.count=32,64", artefacts=own).stdout
    assert re.search(r"Reusing \d+ labels", swept)
    assert re.search(r"\d+ more are labelled already", swept)
    shards = [parquet.read_table(path) for path in folder.glob("*.parquet")]
    rows = Counter(tuple(kept) for shard in shards for kept in shard["kept"].to_pylist())
    assert set(rows.values()) == {1} and len(rows) > 40


@pytest.mark.slow
def test_two_commands_side_by_side_train_one_predictor(run: Run, tmp_path: Path) -> None:
    def train(_: int) -> str:
        given = (*TINY, *HASTY, "labels.count=48")
        return run("train", *given, artefacts=str(tmp_path), process=True).stdout

    with ThreadPoolExecutor() as pool:
        told = list(pool.map(train, range(2)))
    assert any("Training the predictor" in text for text in told)
    (folder,) = (tmp_path / "predictor").glob("[!.]*")  # beside its lock
    assert {"predictor.ckpt", "held_out.json"} <= {path.name for path in folder.iterdir()}
