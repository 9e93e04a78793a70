"""Reads the documents of local files."""

import json
import re
from collections.abc import Iterable
from glob import escape, glob, iglob
from itertools import islice
from pathlib import Path
from typing import Any

from pyarrow import parquet

from ppf.errors import PPFError, reason
from ppf.text.chat import Conversation

_WHOLE = (  # types of files that are one document
    *(".c", ".cc", ".cpp", ".cs", ".go", ".h", ".hpp", ".java", ".jl", ".js", ".jsx", ".kt"),
    *(".lua", ".php", ".py", ".r", ".rb", ".rs", ".scala", ".sh", ".sql", ".swift", ".ts", ".tsx"),
)
_MOST = 100_000  # files and folders in a folder of source files


def files(path: str) -> list[Path]:
    """The file at a path, a folder's source files (no hidden ones), or those that match a pattern.

    Raises:
        PPFError: the folder has more than 100 000 files. A policy of somebody else may name any.
    """
    found = [path] if Path(path).is_file() else glob(path, recursive=True)
    if Path(path).is_dir():
        inside = list(islice(iglob(f"{escape(path)}/**", recursive=True), _MOST + 1))
        if len(inside) > _MOST:
            raise PPFError(f"the folder {path} has more than {_MOST} files: give a smaller one.")
        found = [file for file in inside if Path(file).suffix in _WHOLE]
    return [Path(file) for file in sorted(found) if Path(file).is_file()] or [Path(path)]


def read_file(path: str, column: str, section: str = "text") -> list[str]:
    """The documents of a file, of a folder's source files, or of all files that match a pattern.

    Args:
        path: a .jsonl or .parquet file, whose rows are documents; a .txt file, whose paragraphs
            are documents; a source file, which is one document; a folder of them; or a pattern.
        column: name of the column that holds texts, or lists of messages; of rows only.
        section: of the config that has both, for error messages.

    Raises:
        PPFError: the file is missing, damaged, empty or of another type; or the column is missing
            or does not hold text.
    """
    try:
        documents: list[str] = []
        for file in files(path):
            if not file.is_file():
                what = "no source file is in it" if file.is_dir() else "there is no such file"
                raise FileNotFoundError(what)
            names, values = _read(file, column)
            if names and column not in names:
                raise ValueError(f"{section}.column={column} is none of {list(names)}")
            documents += strings(values, column)
        if not any(document.strip() for document in documents):
            raise ValueError("it contains no text")
    except Exception as error:  # each reader raises its own types
        raise PPFError(
            f"{section}.path={path} cannot be read ({reason(error)}): give a .txt, .jsonl or source"
            " file in UTF-8, a .parquet file, a folder of source files, or a pattern such as"
            " FOLDER/*.py."
        ) from error
    return documents


def strings(values: Iterable[Any], column: str) -> list[str]:
    """The values of a column, without nulls; lists of messages become conversations.

    Raises:
        ValueError: a value is neither, or has half of a character (a lone surrogate).
    """
    found = [Conversation(x) if isinstance(x, list) else x for x in values if x is not None]
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
    if file.suffix not in (".txt", ".jsonl", *_WHOLE):
        raise ValueError(f"its type is none of .txt, .jsonl, .parquet, {', '.join(_WHOLE)}")
    content = file.read_text(encoding="utf-8-sig")
    if file.suffix != ".jsonl":
        return [column], re.split(r"\n\s*\n", content) if file.suffix == ".txt" else [content]
    rows = [json.loads(line) for line in content.split("\n") if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("a line is not a JSON object")
    return dict.fromkeys(name for row in rows for name in row), [row.get(column) for row in rows]
