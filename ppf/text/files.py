"""Reads the documents of a local file."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyarrow import parquet

from ppf.errors import PPFError, reason

_NamesAndValues = tuple[Iterable[str], list[Any]]
"""The names of all columns, and the values of one of them."""


def read_file(path: str, column: str, section: str = "text") -> list[str]:
    """The documents of a file.

    Args:
        path: a .jsonl or .parquet file, whose rows are documents, or a .txt file, whose paragraphs
            are documents.
        column: name of the column that holds the text; ignored for .txt.
        section: of the config that has both, for error messages.

    Raises:
        PPFError: the file is missing, damaged, empty or of another type; or the column is missing
            or does not hold text.
    """
    file, readers = Path(path), {".txt": _paragraphs, ".jsonl": _json, ".parquet": _parquet}
    try:
        if not file.is_file():
            raise FileNotFoundError("there is no such file")
        if file.suffix not in readers:
            raise ValueError(f"its type is none of {', '.join(readers)}")
        names, values = readers[file.suffix](file, column)
        if names and column not in names:
            raise ValueError(f"{section}.column={column} is none of {list(names)}")
        documents = strings(values, column)
        if not any(document.strip() for document in documents):
            raise ValueError("it contains no text")
    except Exception as error:  # each reader raises its own types
        raise PPFError(
            f"{section}.path={path} cannot be read ({reason(error)}): give a .txt or .jsonl file in"
            " UTF-8, or a .parquet file."
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


def _paragraphs(file: Path, column: str) -> _NamesAndValues:
    return [column], re.split(r"\n\s*\n", file.read_text(encoding="utf-8-sig"))


def _json(file: Path, column: str) -> _NamesAndValues:
    lines = file.read_text(encoding="utf-8-sig").split("\n")
    rows = [json.loads(line) for line in lines if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is not a JSON object")
    return dict.fromkeys(name for row in rows for name in row), [row.get(column) for row in rows]


def _parquet(file: Path, column: str) -> _NamesAndValues:
    names = parquet.read_schema(file).names
    if column not in names:
        return names, []
    return names, parquet.read_table(file, columns=[column])[column].to_pylist()
