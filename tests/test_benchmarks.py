"""Benchmarks run to their last line, which is JSON, on the tiny model."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import HASTY

LITTLE = ("text.window=64", "text.windows={calibration:4,labelling:2,test:2}")
MORE = ("text.window=64", "text.windows={calibration:4,labelling:16,test:2}")


@pytest.mark.slow
@pytest.mark.usefixtures("short_text")
@pytest.mark.parametrize(
    ("name", "given", "figure"),
    [
        ("labels", ("labels.count=4", *LITTLE), "speedup_fp32"),
        ("labels", ("--text-size", "labels.count=4", *MORE), "kendall_by_tokens"),
        ("predictor", (*HASTY, *LITTLE), "policies_per_second"),
        ("recovery", ("--steps", "2", "text.window=64"), "speedup"),
    ],
)
def test_a_benchmark_runs_to_its_last_line(
    name: str,
    given: tuple[str, ...],
    figure: str,
    tmp_path: Path,
    cache: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folders = (f"paths.artefacts={tmp_path}", f"paths.outputs={tmp_path}", f"paths.cache={cache}")
    monkeypatch.setattr(sys, "argv", [name, "model=tiny", *given, *folders])
    importlib.import_module(f"benchmarks.{name}").main()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])[figure]


@pytest.mark.slow
@pytest.mark.usefixtures("short_text")
def test_transformers_needs_code_only_for_uneven_layers(
    root: Path, tmp_path: Path, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "engines.json"
    windows = "text.windows={calibration:2,labelling:2,test:3}"
    given = ("transformers", "model=tiny", "text.window=64", windows, "--out", str(out))
    folders = (f"paths.artefacts={tmp_path}", f"paths.outputs={tmp_path}", f"paths.cache={cache}")
    monkeypatch.setattr(sys, "argv", ["engines", *given, *folders])
    monkeypatch.syspath_prepend(root / "benchmarks")
    importlib.import_module("benchmarks.engines").main()
    rows = json.loads(out.read_text())
    own = [(row["model"], row["own_code"], "error" in row) for row in rows]
    expected = [("dense", False, False), ("stock", False, False), ("uneven", False, True)]
    assert own == [*expected, ("uneven", True, False)]
    assert all(row["same_tokens"] for row in rows if "error" not in row)
