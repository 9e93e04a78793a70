"""The benchmark of scale: its checkpoints load, its stages resume, its last line is JSON."""

import json
import resource
import sys
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from benchmarks import scale
from ppf.llm import load


def test_a_random_checkpoint_loads(tmp_path: Path) -> None:
    shape = scale.shapes()["tiny"]
    for tied in (True, False):
        folder = tmp_path / str(tied)
        scale.write_checkpoint(shape | {"tie_word_embeddings": tied}, folder)
        config = {"path": str(folder), "source": None, "dtype": "bfloat16"}
        lm = load(OmegaConf.create(config), str(tmp_path))
        ids = torch.arange(8)[None]
        assert lm.model(ids).logits.isfinite().all()
        assert lm.model.config.num_hidden_layers == shape["num_hidden_layers"]


def test_a_killed_checkpoint_goes_on(tmp_path: Path) -> None:
    shape = scale.shapes()["tiny"]
    scale.write_checkpoint(shape, tmp_path)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert len(files) == 1 + shape["num_hidden_layers"]
    kept, lost = files[0].stat().st_ino, files[-1].read_bytes()
    files[-1].unlink()
    scale.write_checkpoint(shape, tmp_path)
    assert files[0].stat().st_ino == kept and files[-1].read_bytes() == lost


def quick(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def test_finished_stages_are_not_repeated(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    grow = f"x = b'1' * 2**27; open({str(tmp_path / 'file')!r}, 'ab').write(x[: 2**20])"
    label = 'print(\'{"seconds": 1.5, "bank_share": 0.2}\')'
    commands = {"bank": quick(grow), "label": quick(label)}
    found = scale.measure(tmp_path, commands, [])
    assert found["stages"]["bank"]["disk_gib"] == pytest.approx(2**-10)
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # a process inherits it
    assert 2**-4 < found["stages"]["bank"]["peak_gib"] <= max(own, 1)
    again = scale.measure(tmp_path, commands | {"search": quick("raise SystemExit(0)")}, [])
    with pytest.raises(SystemExit, match="of other overrides"):
        scale.measure(tmp_path, commands, ["labels.count=5"])
    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="of another version"):
        patch.setattr(scale, "version", lambda: "another")
        scale.measure(tmp_path, commands, [])
    assert (tmp_path / "file").stat().st_size == 2**20
    assert again["stages"]["bank"] == found["stages"]["bank"]
    capfd.readouterr()
    scale.report({"shape": "tiny", **again})
    told = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert told["label"] == {"seconds": 1.5, "bank_share": 0.2}
    assert list(told["stages"]) == ["bank", "label", "search"]
