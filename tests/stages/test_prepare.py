from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from lightning import Fabric

from ppf.errors import PPFError
from ppf.stages import prepare as stage
from tests.searched import QUICK


def test_too_little_text_to_label_is_refused_before_calibration(
    cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def calibrate(*arguments: object) -> None:
        raise AssertionError("the long work has begun")

    monkeypatch.setattr(stage, "collect_statistics", calibrate)
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Article {i} says nothing." * 8 for i in range(64)))
    given = [f"text.path={text}", f"paths.artefacts={tmp_path}", f"paths.cache={cache}"]
    with initialize_config_module("ppf.conf", version_base="1.3"):
        cfg = compose("collect", ["model=tiny", *QUICK, *given, "text.windows.labelling=1000"])
    with pytest.raises(PPFError, match="lower text.windows.labelling"):
        stage.prepare(cfg, Fabric(accelerator="cpu", devices=1))
