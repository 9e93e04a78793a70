"""The keeper of artefacts: one maker, nothing half written, damage repaired."""

import json
import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ppf.artefacts import draft, get_or_make, write_json
from ppf.errors import PPFError
from tests.ranks import FakeRanks


def read(path: Path) -> dict[str, int]:
    return json.loads(path.read_text(encoding="utf-8"))


def make(path: Path) -> None:
    path.write_text('{"made": 1}', encoding="utf-8")


def fail(*arguments: object) -> None:
    raise AssertionError("made again")


@pytest.mark.parametrize("damage", [b"", b'{"made"', b"\xff\xfe"], ids=["empty", "cut", "bytes"])
def test_a_damaged_artefact_is_made_again(
    tmp_path: Path, damage: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "kind" / "a.json"
    assert get_or_make(file, read=read, make=make) == {"made": 1}
    assert get_or_make(file, read=read, make=fail) == {"made": 1}
    file.write_bytes(damage)
    assert get_or_make(file, read=read, make=make) == {"made": 1}
    assert f"Warning: {file} cannot be read" in capsys.readouterr().out


def test_a_folder_that_is_damaged_is_replaced(tmp_path: Path) -> None:
    def make_folder(folder: Path) -> None:
        folder.mkdir()
        save_file({"a": torch.ones(2)}, folder / "a.safetensors")

    def read_folder(folder: Path) -> torch.Tensor:
        return load_file(folder / "a.safetensors")["a"]

    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.safetensors").write_bytes(b"")
    (folder / "old").touch()
    assert get_or_make(folder, read=read_folder, make=make_folder).tolist() == [1, 1]
    assert not (folder / "old").exists()


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    def broken(path: Path) -> None:
        make(path)
        raise KeyError("no")

    with pytest.raises(KeyError):
        get_or_make(tmp_path / "a.json", read=read, make=broken)
    assert not [path for path in tmp_path.iterdir() if not path.name.endswith(".lock")]


def test_drafts_of_killed_processes_are_removed(tmp_path: Path) -> None:
    stale = tmp_path / ".a.json.0123.draft"
    stale.touch()
    get_or_make(tmp_path / "a.json", read=read, make=make)
    assert not stale.exists()


def _slowly(path: Path) -> None:
    time.sleep(0.2)
    path.write_text(json.dumps({"made": os.getpid()}), encoding="utf-8")


def _process(file: Path, answers: "multiprocessing.Queue[int]") -> None:
    answers.put(get_or_make(file, read=read, make=_slowly)["made"])


def test_of_several_processes_one_makes_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    running = [
        context.Process(target=_process, args=(tmp_path / "a.json", answers)) for _ in range(3)
    ]
    for process in running:
        process.start()
    makers = {answers.get(timeout=60) for _ in running}
    for process in running:
        process.join()
    assert len(makers) == 1


def test_only_rank_0_makes_it(tmp_path: Path) -> None:
    file, sent = tmp_path / "a.json", list[object]()
    get_or_make(file, read=read, make=make, ranks=FakeRanks(0, sent))
    assert get_or_make(file, read=read, make=fail, ranks=FakeRanks(1, sent)) == {"made": 1}
    with pytest.raises(FileNotFoundError):
        get_or_make(tmp_path / "b.json", read=read, make=fail, ranks=FakeRanks(1, sent))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full device")
def test_a_full_disk_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(PPFError, match="No space left on device"), draft(tmp_path / "a") as file:
        with Path("/dev/full").open("wb", buffering=0) as stream:
            stream.write(b"1")
        make(file)


def test_json_files_have_no_nan(tmp_path: Path) -> None:
    content = {"a": [1.5, float("nan")], "b": {"c": float("inf")}, "d": "NaN"}
    write_json(tmp_path / "a.json", content)
    assert read(tmp_path / "a.json") == {"a": [1.5, None], "b": {"c": None}, "d": "NaN"}
