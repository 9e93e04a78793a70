"""Documents of a local file."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pyarrow import parquet

from ppf.errors import PPFError, reason

_Found = tuple[Iterable[str], list[Any]]
"""The names of all columns, and the values of the one that was asked for."""


def read_file(path: str, column: str) -> list[str]:
    """The documents: .jsonl and .parquet give `column` of every row, .txt gives paragraphs.

    Raises:
        PPFError: there is no such file, it is damaged or empty, it has another ending, or its
            column is missing or is no text.
    """
    file, readers = Path(path), {".txt": _paragraphs, ".jsonl": _json, ".parquet": _parquet}
    if not file.is_file():
        raise PPFError(f"text.path={path} does not exist.")
    if file.suffix not in readers:
        raise PPFError(f"text.path={path} is not read: give a .txt, .jsonl or .parquet file.")
    try:
        names, values = readers[file.suffix](file, column)
    except Exception as error:  # each reader has errors of its own
        raise PPFError(
            f"text.path={path} cannot be read ({reason(error)}): give a .txt or .jsonl file in"
            " UTF-8, or a .parquet file."
        ) from error
    if names and column not in names:
        raise PPFError(
            f"text.path={path} has no column '{column}': give text.column, one of {list(names)}."
        )
    documents = strings(values, f"column '{column}' of text.path={path}", "text.column")
    if not any(document.strip() for document in documents):
        raise PPFError(f"text.path={path} holds no text: give another file.")
    return documents


def strings(values: Iterable[Any], what: str, override: str) -> list[str]:
    """The values of a column, without nulls.

    Args:
        what: describes the column.
        override: the setting that names another one.

    Raises:
        PPFError: a value is no string.
    """
    found = [value for value in values if value is not None]
    for value in found:
        if not isinstance(value, str):
            kind = type(value).__name__
            raise PPFError(f"{what} holds {kind}, not text: give another {override}.")
    return found


def _paragraphs(file: Path, column: str) -> _Found:
    return [column], re.split(r"\n\s*\n", file.read_text(encoding="utf-8"))


def _json(file: Path, column: str) -> _Found:
    lines = file.read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is no JSON object")
    return dict.fromkeys(name for row in rows for name in row), [row.get(column) for row in rows]


def _parquet(file: Path, column: str) -> _Found:
    names = parquet.read_schema(file).names
    if column not in names:
        return names, []
    return names, parquet.read_table(file, columns=[column])[column].to_pylist()
