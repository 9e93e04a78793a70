"""evaluate.py with all that can be asked of it, by the command that a user types."""

import json
from pathlib import Path

import pytest

from tests.cli.conftest import Run
from tests.evaluation.conftest import task_file  # noqa: F401  (a fixture)

TEXT = ("text.windows.labelling=2", "text.windows.calibration=4", "text.window=64")


@pytest.mark.slow
def test_other_windows_speed_and_tasks_dense_beside_pruned(
    run: Run,
    text: str,
    tmp_path: Path,
    task_file: Path,  # noqa: F811
) -> None:
    small = ("model=tiny", text, *TEXT, "text.windows.test=4", "logger=csv")
    run("search", *small, "agent=uniform", "predictor=sensitivity", "search.rounds=1")
    (policy,) = tmp_path.rglob("policy.json")
    delivered = json.loads(policy.with_name("summary.json").read_text())["delivered"]
    assert delivered["part"] == "selection" and "test" not in delivered
    assert 0 < delivered["sequential"]["nll"] != delivered["one_shot"]["nll"]
    said = run(
        "evaluate",
        f"policy={policy}",
        "window=96",
        "latency=true",
        "speed={batches:[1,2],prompt:32,new_tokens:4,repeats:1}",
        f"tasks=[{task_file}]",
        "logger=csv",
    ).stdout
    assert "prefill, tokens/s" in said and "letters" in said

    (written,) = tmp_path.rglob("evaluation.json")
    page = written.with_name("report.html").read_text()
    assert "windows of 96 tokens." in page
    assert "<dt>dtype</dt><dd>auto</dd>" not in page, "the resolved number format"
    results = {x["name"]: x for x in json.loads(written.read_text())["results"]}
    assert results.keys() == {"dense", "uniform", "PPF"}
    for found in results.values():
        assert [x["batch"] for x in found["speed"]] == [1, 2]
        assert 0 <= found["tasks"]["letters"]["acc"] <= 1
    assert results["PPF"]["bytes"] < results["dense"]["bytes"]
