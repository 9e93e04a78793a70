"""Benchmarks run to their last line, which is JSON, on the tiny model."""

import importlib
import json
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from benchmarks import scale
from ppf.llm import load
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


def test_a_random_checkpoint_of_the_benchmark_of_scale_loads(tmp_path: Path) -> None:
    shape = scale.shapes()["tiny"]
    for tied in (True, False):
        folder = tmp_path / str(tied)
        scale.write_checkpoint(shape | {"tie_word_embeddings": tied}, folder)
        config = {"path": str(folder), "source": None, "dtype": "bfloat16"}
        lm = load(OmegaConf.create(config), str(tmp_path))
        ids = torch.arange(8)[None]
        assert lm.model(ids).logits.isfinite().all()
        assert lm.model.config.num_hidden_layers == shape["num_hidden_layers"]
