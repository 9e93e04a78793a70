"""Experiments on the tiny model: a multirun, its table, and what happens when it is run again."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Run


def rows(folder: Path) -> dict[str, dict]:
    """Rows of results.json by their agent."""
    return {row["agent"]: row for row in json.loads(folder.read_text())["rows"]}


@pytest.mark.slow
def test_an_experiment_fills_its_table_and_goes_on(
    run: Run, quick: tuple[str, ...], tmp_path: Path
) -> None:
    folder = tmp_path / "outputs" / "experiments" / "search" / "rules"
    given = ("search", "-m", "experiment=search/rules", *quick, "ratio=0.4")
    said = run(*given, "agent=uniform,owl").stdout
    assert "Job 1: agent=owl ratio=0.4" in said and "results.json" in said
    first = rows(folder / "results.json")
    assert first.keys() == {"uniform", "owl"}
    assert all(row["test_ppl"] > 1 and row["evaluations"] <= 3 for row in first.values())
    assert all(row["token_passes"] >= 32 * row["evaluations"] for row in first.values())
    assert first["uniform"]["test_ppl"] == first["owl"]["uniform_test_ppl"]

    (owl,) = folder.glob("agent-owl*")
    (owl / "run.json").unlink()  # as if it had been killed
    again = run(*given, "agent=uniform,owl,flap").stdout
    assert again.count("Already finished") == 1
    assert rows(folder / "results.json").keys() == {"uniform", "owl", "flap"}
    assert rows(folder / "results.json")["owl"]["test_ppl"] == first["owl"]["test_ppl"]


@pytest.mark.slow
def test_two_multiruns_of_one_experiment_run_each_job_once(
    root: Path, quick: tuple[str, ...], tmp_path: Path
) -> None:
    """As if the first had been submitted to a cluster, and its jobs went on without it."""
    folders = [f"paths.{name}={tmp_path}/{name}" for name in ("outputs", "artefacts")]
    given = ["-m", "experiment=search/rules", *quick, "ratio=0.4", "agent=uniform", *folders]
    command = [sys.executable, "search.py", *given]
    both = [
        subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = "".join(process.communicate(timeout=300)[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert said.count("Already finished") == said.count("Searching at ratio 0.4") == 1
