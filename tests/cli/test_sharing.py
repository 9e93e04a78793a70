"""Processes of one run, jobs of a sweep, and commands side by side share labels and predictors."""

import re
from collections import Counter
from pathlib import Path

import pytest
from pyarrow import parquet

from tests.cli.conftest import Run
from tests.commands import on_two_ranks

TINY = (
    "model=tiny",
    "sampler=rough",
    "text.windows.labelling=2",
    "text.windows.calibration=8",
    "text.window=64",
    "logger=none",
)


@pytest.mark.slow
def test_two_processes_and_the_jobs_of_a_sweep_label_each_policy_once(
    run: Run, text: str, tmp_path: Path
) -> None:
    own = str(tmp_path)
    paths = [f"paths.artefacts={own}", f"paths.outputs={tmp_path}/outputs"]
    on_two_ranks("collect", [*TINY, text, "labels.count=48", *paths], tmp_path)
    (folder,) = (tmp_path / "labels").iterdir()

    swept = run("collect", "-m", *TINY, text, "labels.count=32,64", artefacts=own).stdout
    assert re.search(r"Reusing \d+ labels", swept)
    assert re.search(r"\d+ more are labelled already", swept)
    shards = [parquet.read_table(path) for path in folder.glob("*.parquet")]
    rows = Counter(tuple(kept) for shard in shards for kept in shard["kept"].to_pylist())
    assert set(rows.values()) == {1} and len(rows) > 40
