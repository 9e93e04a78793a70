"""Errors for damaged or unsuitable text files name the override."""

import json
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from ppf.errors import PPFError
from ppf.text.files import read_file

WHOLE = pa.table({"text": ["one", None, "two " * 500], "number": [1, 2, 3]})


def written(folder: Path, name: str, content: bytes) -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


def parquet_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()


def rows(*values: object) -> bytes:
    return "\n".join(json.dumps({"text": value}) for value in values).encode()


@pytest.mark.parametrize(
    ("name", "content", "part"),
    [
        ("latin.txt", "café ".encode("latin-1"), "cannot be read (UnicodeDecodeError"),
        ("blank.txt", b"\n\n  \n\n", "contains no text"),
        ("cut.jsonl", rows("one", "two")[:-3], "cannot be read (JSONDecodeError"),
        ("numbers.jsonl", b"1\n2", "a line is not a JSON object"),
        ("column.jsonl", b'{"body": "one"}', "text.column=text is none of ['body']"),
        ("other.jsonl", rows("one", 2), "column 'text' contains int, not text"),
        ("half.jsonl", rows("a \ud83d"), "surrogates not allowed"),
        ("garbage.parquet", b"PAR1" + bytes(99) + b"PAR1", "cannot be read ("),
        ("rows.parquet", parquet_bytes(WHOLE.slice(0, 0)), "contains no text"),
        ("pickle.bin", b"", "its type is none of .txt, .jsonl, .parquet, .c, "),
        ("chat.jsonl", rows([{"role": "user"}]), "a message is not {role: TEXT, content: TEXT}"),
    ],
)
def test_the_fault_of_a_file_is_named(tmp_path: Path, name: str, content: bytes, part: str) -> None:
    path = written(tmp_path, name, content)
    with pytest.raises(PPFError) as caught:
        read_file(path, "text")
    sentence = str(caught.value)
    assert part in sentence and f"text.path={path}" in sentence and "\n" not in sentence


def test_rows_with_null_are_skipped(tmp_path: Path) -> None:
    content = {"a.jsonl": rows("one", None, "two"), "b.parquet": parquet_bytes(WHOLE)}
    for name, data in content.items():
        documents = read_file(written(tmp_path, name, data), "text")
        assert [document[:3] for document in documents] == ["one", "two"]


@pytest.mark.parametrize("name", ["marked.txt", "marked.jsonl"])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, name: str) -> None:
    content = rows("one") if name.endswith("jsonl") else b"one"
    assert read_file(written(tmp_path, name, b"\xef\xbb\xbf" + content), "text") == ["one"]


def test_a_folder_stands_for_its_source_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / ".git").mkdir()
    for name in ("in/b.rs", "a.py", ".git/c.py", "d.bin"):
        written(tmp_path, name, name.encode())
    assert read_file(str(tmp_path), "text") == ["a.py", "in/b.rs"]
    monkeypatch.setattr("ppf.text.files._MOST", 2)
    with pytest.raises(PPFError, match="has more than 2 files: give a smaller one"):
        read_file(str(tmp_path), "text")
    (tmp_path / "in" / "b.rs").unlink()
    with pytest.raises(PPFError, match="no source file is in it"):
        read_file(f"{tmp_path}/in", "text")


def test_a_pattern_names_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "folder.py").mkdir()
    for name, content in (("b.py", b"b\n\n\nb"), ("a.py", b"a"), ("folder.py/c.txt", b"c\n\nd")):
        written(tmp_path, name, content)
    assert read_file(f"{tmp_path}/*.py", "text") == ["a", "b\n\n\nb"]
    assert read_file(f"{tmp_path}/**/c.*", "text") == ["c", "d"]
    literal = written(tmp_path, "[a].py", b"a file whose name is a pattern")
    assert read_file(literal, "text") == ["a file whose name is a pattern"]
    with pytest.raises(PPFError, match="there is no such file"):
        read_file(f"{tmp_path}/*.jsonl", "text")
