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
