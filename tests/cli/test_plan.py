"""`plan=true` tells what a model needs; nothing is loaded, downloaded or written."""

from pathlib import Path

from tests.cli.conftest import Run


def test_a_plan_needs_no_weights(run: Run, tmp_path: Path) -> None:
    told = run("search", "plan=true", "model=llama3_8b", "logger=none", "fabric=cpu").stdout
    assert "8.03 billion parameters" in told
    for stage in ("observing the dense model", "building the bank", "48 labels", "free here"):
        assert stage in told
    assert "GiB of factors" in told
    drawn = run(
        "search", "plan=true", "model=llama3_8b", "predictor=residual", "logger=none"
    ).stdout
    assert "176 labels" in drawn  # 128 before the search, 48 in it
    scored = run("train", "plan=true", "model=tiny", "test_policies=32", "logger=none").stdout
    assert "160 labels" in scored
    assert not list((tmp_path / "outputs").rglob("*.safetensors"))


def test_a_plan_leaves_no_run_folder(run: Run, tmp_path: Path) -> None:
    run("search", "plan=true", "model=tiny", "logger=none", "fabric=cpu")
    run("search", "-m", "plan=true", "model=tiny", "ratio=0.2,0.3", "logger=none", "fabric=cpu")
    left = [path for path in (tmp_path / "outputs").rglob("*") if path.is_file()]
    assert [path.name for path in left] == ["multirun.yaml"]


def test_a_model_without_a_known_structure_is_one_sentence(run: Run) -> None:
    told = run("search", "plan=true", "model=local", "logger=none", ok=False)
    assert "give a local folder with model.path=FOLDER" in told.stdout + told.stderr
