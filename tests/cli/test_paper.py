"""The paper's tables as experiments: planned without weights, and run on the tiny model."""

import gzip
import json
from pathlib import Path

import pytest

from ppf.conf import options
from tests.cli.conftest import Run

EXPERIMENTS = sorted(name for name in options("experiment") if name.startswith("paper/"))
MODELS = ("llama2_7b", "llama3_8b")
QUICK = (
    "model=tiny", "text.window=64,128", "debug=limit", "logger=none",
    "text.windows={calibration:8,labelling:2,test:4}",
)  # fmt: skip


def test_each_model_has_one_for_each_table() -> None:
    tables = ("", "_c4", "_dynamic")
    assert [f"paper/{model}{table}" for model in MODELS for table in tables] == EXPERIMENTS


@pytest.mark.slow
def test_static_policies_fill_the_table_of_c4(run: Run, tmp_path: Path) -> None:
    (tmp_path / "c4" / "en").mkdir(parents=True)
    for file in ("train.00000-of-01024", "validation.00000-of-00008"):
        lines = (json.dumps({"text": f"Page {i} of {file}. " * 20}) for i in range(40))
        path = tmp_path / "c4" / "en" / f"c4-{file}.json.gz"
        path.write_bytes(gzip.compress("\n".join(lines).encode()))
    given = (f"text.source.path={tmp_path / 'c4'}", "ratio=0.3")
    run("search", "-m", "experiment=paper/llama2_7b_c4", *QUICK, *given)
    (results,) = tmp_path.rglob("results.json")
    rows = json.loads(results.read_text())["rows"]
    assert {row["text.window"] for row in rows} == {64, 128}
    assert all(row["ratio"] == 0.3 and row["test_ppl"] > 1 for row in rows)


@pytest.mark.slow
def test_one_agent_fills_all_ratios_with_the_published_predictor(
    run: Run, text: str, tmp_path: Path
) -> None:
    given = (
        text,
        "text.window=64",
        "predictor=cnn",
        "predictor.members=2",
        "trainer.max_epochs=1",
        "labels.count=24",
        "agent=reinforce",
        "agent.iterations=5",
        "search.points=4",
        "search.stride=2",
        "search.polish.generations=2",
        "ratios=[0.2,0.3,0.4,0.5]",
    )
    run("search", "-m", "experiment=paper/llama3_8b_dynamic", *QUICK, *given)
    (results,) = tmp_path.rglob("results.json")
    rows = json.loads(results.read_text())["rows"]
    assert len(rows) == 4 and all(row["test_ppl"] > 1 for row in rows)
