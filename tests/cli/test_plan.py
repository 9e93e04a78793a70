"""`plan=true` tells what a model needs; nothing is loaded, downloaded or written."""

import re
from functools import partial
from pathlib import Path

import pytest
from transformers import LlamaConfig

from ppf.planning import capacity
from tests.cli.conftest import Run


def test_a_plan_needs_no_weights(run: Run, tmp_path: Path) -> None:
    run = partial(run, artefacts=f"{tmp_path}/artefacts")
    told = run("search", "plan=true", "model=llama3_8b", "logger=none", "fabric=cpu").stdout
    assert "8.03 billion parameters" in told
    for stage in ("observing the dense model", "building the bank", "48 labels", "free here"):
        assert stage in told
    assert "stored as matrix factors" in told
    drawn = run(
        "search", "plan=true", "model=llama3_8b", "predictor=residual", "logger=none"
    ).stdout
    assert "175 labels" in drawn  # 128 before the search, 47 in it
    for given, count in {
        "agent=uniform": 3,  # the dense model, uniform pruning and the agent's policy
        "search.rounds=3": 20,  # 12 proposals, seven rules and the dense model
        "search.neighbours=1": 56,  # 48 is the largest number of proposals
        "experiment=search/real_evolution": 50,  # 40 children, nine starts and the dense model
        "experiment=search/multi_step": 50,  # five times 32 on an eighth of the text, and 4 on all
        "search.label_budget=20": 28,
    }.items():
        told = run("search", "plan=true", "model=tiny", "logger=none", given).stdout
        assert f" {count} labels" in told, told
        with_gradients = given.startswith("search")
        assert ("gradients of the best policies" in told) == with_gradients
    unknown = run(
        "search", "plan=true", "model=tiny", "predictor=oracle", "agent=ppo", "logger=none"
    ).stdout
    assert "their number is not known in advance" in unknown
    polished = run(
        "search", "plan=true", "model=tiny", "predictor=oracle", "agent=cmaes", "logger=none"
    ).stdout
    assert "their number is not known in advance" in polished
    assert "24 labels" in run("collect", "plan=true", "model=tiny", "labels.count=24").stdout
    scored = run("train", "plan=true", "model=tiny", "test_policies=32", "logger=none").stdout
    assert "160 labels" in scored
    assert not [path for path in (tmp_path / "artefacts").rglob("*") if path.is_file()]


def test_a_plan_of_a_local_model_names_its_folder(run: Run, tmp_path: Path) -> None:
    LlamaConfig(hidden_size=64, num_hidden_layers=1).save_pretrained(tmp_path / "mine")
    told = run("search", "plan=true", f"model.path={tmp_path}/mine", "logger=none").stdout
    assert "Plan for model=mine: 0.01 billion parameters" in told


def test_a_plan_leaves_no_run_folder(run: Run, tmp_path: Path) -> None:
    run("search", "plan=true", "model=tiny", "logger=none", "fabric=cpu")
    run("search", "-m", "plan=true", "model=tiny", "ratio=0.2,0.3", "logger=none", "fabric=cpu")
    left = [path for path in (tmp_path / "outputs").rglob("*") if path.is_file()]
    assert [path.name for path in left] == ["multirun.yaml"]


def test_a_multirun_of_plans_fails_if_one_of_them_does(run: Run) -> None:
    told = run("search", "-m", "plan=true", "model=tiny", "agent.descents=0", ok=False)
    assert "agent.descents=0 should be" in told.stdout + told.stderr


def test_a_model_without_a_known_structure_is_one_sentence(run: Run) -> None:
    told = run("search", "plan=true", "model.source=null", "logger=none", ok=False)
    assert "give a local folder with model.path=FOLDER" in told.stdout + told.stderr


def line(told: str, name: str) -> list[float]:
    """The numbers of a row of the table."""
    (found,) = (row for row in told.splitlines() if row.strip().startswith(name))
    return [float(number) for number in re.findall(r"-?\d+\.\d", found)]


def has(monkeypatch: pytest.MonkeyPatch, memory: float, disk: float) -> None:
    monkeypatch.setattr(capacity.Free, "on", lambda *_: capacity.Free(memory, memory, disk))


def test_a_plan_ends_with_what_the_command_would_say(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("plan=true", "model=llama2_7b", "model.dtype=bfloat16", "logger=none", "fabric=cpu")
    has(monkeypatch, 24, 40)
    told = run("search", *given).stdout
    assert told.rstrip().endswith("\nIt fits.")
    told = run("search", *given, "fabric.devices=2").stdout
    assert "those of 2 processes" in told
    assert told.rstrip().endswith("for 2 processes, but 24.0 GiB are free: give fabric.devices=1.")
    has(monkeypatch, 24, 20)  # each stage alone would fit
    last = run("search", *given).stdout.splitlines()[-1]
    assert last.startswith("It does not fit: model=llama2_7b needs 28.4 GiB of disk, but 20.0 GiB")


def test_a_plan_has_one_column_of_memory_on_a_cpu_and_a_total(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    has(monkeypatch, 24, 40)
    given = ("plan=true", "model=llama2_7b", "model.dtype=bfloat16", "logger=none", "fabric=cpu")
    told = run("search", *given).stdout
    assert told.count("memory, GiB") == 1
    assert line(told, "free here") == [24, 40]
    assert line(told, "whole run")[:2] == [19.4, 28.4]
    offloaded = run("search", *given, "model.offload=disk").stdout
    assert line(offloaded, "whole run")[1] == 40.4


def test_a_plan_subtracts_what_is_there(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ("plan=true", "model=llama2_7b", "model.dtype=bfloat16", "logger=none", "fabric=cpu")
    has(monkeypatch, 24, 20)
    monkeypatch.setattr(capacity, "_made", lambda *_: 16.4)
    told = run("search", *given).stdout
    assert line(told, "files that exist") == [-16.4]
    assert line(told, "whole run")[1] == 12.0
    assert told.rstrip().endswith("It fits.")


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["model.device_map=auto", "model.offload=cpu"], "give only one of them"),
        (["model.device_map=auto", "fabric.devices=2"], "give fabric.devices=1"),
        (["model.device_map=auto"], "give model.device_map=null, or fabric=gpu"),
    ],
)
def test_a_plan_refuses_what_the_command_refuses(
    run: Run, overrides: list[str], sentence: str
) -> None:
    given = ("plan=true", "model=llama2_7b", "logger=none", "fabric=cpu", *overrides)
    told = run("search", *given, ok=False)
    assert sentence in told.stdout + told.stderr
