"""Wrong files are refused in one printable sentence."""

import json
import os
from pathlib import Path

import pytest

from ppf.errors import PPFError
from ppf.records import read
from ppf.records.policy import PolicyRecord
from tests.records import examples

GOOD = json.dumps(examples.policy())


def refused(path: Path) -> str:
    with pytest.raises(PPFError) as caught:
        read(path, PolicyRecord, "give another")
    sentence = str(caught.value)
    assert sentence.isprintable() and len(sentence) < 500 and sentence.endswith("give another.")
    return sentence


def test_a_good_policy_comes_back_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    file.write_text(GOOD)
    assert read(file, PolicyRecord, "give another") == json.loads(GOOD)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "cannot be read"),
        (b"\xff\xfe", "cannot be read"),
        (b"[" * 100_000, "recursion"),
        (b'{"format": 1, "format": 1}', "a name occurs twice"),
        (b'{"format": NaN}', "NaN is not a number in JSON"),
        (b'{"format": ' + b"9" * 5000 + b"}", "cannot be read"),
        (b" " * (17 << 20), "larger than 16 MiB"),
        (b"null", "should be an object"),
        (b'{"format": 0}', "format should be 1"),
    ],
)
def test_a_wrong_policy_is_refused_with_its_fault(
    tmp_path: Path, content: bytes, said: str
) -> None:
    file = tmp_path / "policy.json"
    file.write_bytes(content)
    assert said in refused(file)


def test_a_path_without_a_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "absent", tmp_path / "pipe", Path("/dev/zero")):
        assert "there is no such file" in refused(path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"\x1b[31mred": 1}, "?[31mred is unknown"),
        ({"model": "\u202egnp"}, "model must not contain control characters"),
        ({"model": "\ud800"}, "model should be a valid string"),
        ({"model": "${oc.env:HOME}"}, "model must not refer to other values"),
        ({"model": "???"}, "model must not refer to other values"),
        ({"x" * 5000: 1}, "xxx is unknown"),
    ],
)
def test_texts_contain_no_interpolation_and_no_control_character(
    tmp_path: Path, changes: dict, said: str
) -> None:
    file = tmp_path / "policy.json"
    file.write_text(json.dumps(examples.policy() | changes))
    assert said in refused(file)


def test_interpolations_in_a_file_are_not_resolved(tmp_path: Path) -> None:
    """Neither in values nor in names, at any depth."""
    file, hidden = tmp_path / "policy.json", json.dumps("${oc.env:HOME}")
    for text in ('"tiny"', '"wikipedia_sample"', '"0.mlp"', '"llama"', '"all"', '"mlp"'):
        assert text in GOOD
        file.write_text(GOOD.replace(text, hidden))
        assert os.environ["HOME"] not in refused(file)
