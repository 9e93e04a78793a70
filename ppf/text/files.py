"""Reads the documents of a local file."""

import json
import re
from collections.abc import Iterable
from glob import glob
from pathlib import Path
from typing import Any

from pyarrow import parquet

from ppf.errors import PPFError, reason


def files(path: str) -> list[Path]:
    """The file at a path, or the files that match it as a pattern such as FOLDER/*.py."""
    matches = [path] if Path(path).is_file() else sorted(glob(path, recursive=True))
    return [Path(match) for match in matches if Path(match).is_file()] or [Path(path)]


def read_file(path: str, column: str, section: str = "text") -> list[str]:
    """The documents of a file, or of all files that match a pattern.

    Args:
        path: a .jsonl or .parquet file, whose rows are documents; a .txt file, whose paragraphs
            are documents; a .py file, which is one document; or a pattern.
        column: name of the column that holds the text; ignored for .txt.
        section: of the config that has both, for error messages.

    Raises:
        PPFError: the file is missing, damaged, empty or of another type; or the column is missing
            or does not hold text.
    """
    try:
        documents: list[str] = []
        for file in files(path):
            if not file.is_file():
                raise FileNotFoundError("there is no such file")
            names, values = _read(file, column)
            if names and column not in names:
                raise ValueError(f"{section}.column={column} is none of {list(names)}")
            documents += strings(values, column)
        if not any(document.strip() for document in documents):
            raise ValueError("it contains no text")
    except Exception as error:  # each reader raises its own types
        raise PPFError(
            f"{section}.path={path} cannot be read ({reason(error)}): give a .txt, .py or .jsonl"
            " file in UTF-8, a .parquet file, or a pattern such as FOLDER/*.py."
        ) from error
    return documents


def strings(values: Iterable[Any], column: str) -> list[str]:
    """The values of a column, without nulls.

    Raises:
        ValueError: a value is not a string, or has half of a character (a lone surrogate).
    """
    found = [value for value in values if value is not None]
    for value in found:
        if not isinstance(value, str):
            raise ValueError(f"column '{column}' contains {type(value).__name__}, not text")
        value.encode()
    return found


def _read(file: Path, column: str) -> tuple[Iterable[str], list[Any]]:
    """The names of all columns, and the values of one of them."""
    if file.suffix == ".parquet":
        names = parquet.read_schema(file).names
        found = parquet.read_table(file, columns=[column] if column in names else [])
        return names, found[column].to_pylist() if column in names else []
    if file.suffix not in (".txt", ".py", ".jsonl"):
        raise ValueError("its type is none of .txt, .py, .jsonl, .parquet")
    content = file.read_text(encoding="utf-8-sig")
    if file.suffix != ".jsonl":
        return [column], re.split(r"\n\s*\n", content) if file.suffix == ".txt" else [content]
    rows = [json.loads(line) for line in content.split("\n") if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is not a JSON object")
    return dict.fromkeys(name for row in rows for name in row), [row.get(column) for row in rows]
