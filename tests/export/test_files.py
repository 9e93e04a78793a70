"""What an export may replace."""

from pathlib import Path

import pytest

from ppf.errors import PPFError
from ppf.export import check_out
from tests.records import examples


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors", "a-f16.gguf"])
def test_only_a_model_that_ppf_wrote_is_replaced(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    check_out(tmp_path / "new", examples.policy())
    (tmp_path / ".tmpDrafT").touch()  # of a killed export
    check_out(tmp_path, examples.policy())
    assert not capsys.readouterr().out
    (tmp_path / name).touch()
    with pytest.raises(PPFError, match=f"an export would replace {name} in out="):
        check_out(tmp_path, examples.policy())
    (tmp_path / "policy.json").touch()
    check_out(tmp_path, examples.policy())
    assert f"has {name} already" in capsys.readouterr().out


def test_what_is_read_and_the_dense_model_stay(tmp_path: Path) -> None:
    with pytest.raises(PPFError, match="is the folder that is read"):
        check_out(tmp_path / ".." / tmp_path.name, examples.policy(), tmp_path)
    record = examples.policy()
    record["config"]["model"]["path"] = str(tmp_path / "dense")
    with pytest.raises(PPFError, match="is the folder of the dense model"):
        check_out(tmp_path / "dense", record)
