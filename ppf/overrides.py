"""Values in the grammar of Hydra's overrides."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def quoted(text: str | Path) -> str:
    """A string as the value of an override; in quotes unless Hydra reads it as the same string."""
    if _PLAIN.fullmatch(str(text)) and str(text).lower() not in _NOT_STRINGS:
        return str(text)
    # Hydra halves the backslashes before a quotation mark and leaves all others.
    escaped = re.sub(r'(\\*)("|\Z)', lambda m: 2 * m[1] + (m[2] and r"\""), str(text))
    return f'"{escaped}"'


def text(value: Any) -> str:
    """A value of a config.

    Raises:
        TypeError: it cannot be one.
    """
    if isinstance(value, str | Path):
        return quoted(value)
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}: {text(part)}' for key, part in value.items())}}}"
    if isinstance(value, Sequence):
        return f"[{','.join(map(text, value))}]"
    return json.dumps(value, default=_number)


def _number(value: Any) -> Any:
    """A number of NumPy or PyTorch as one of Python."""
    try:
        return value.item()
    except (AttributeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{value!r} is no number, text, list or dictionary") from error


def written(given: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """A section of a config as overrides.

    Args:
        prefix: of the keys, as in "text."; empty: the section is the whole config.
    """
    for key, value in given.items():
        if isinstance(value, Mapping) and value:
            yield from written(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}={text(value)}"


_PLAIN = re.compile(r"(\.{0,2}/|[a-zA-Z_])[\w./+-]*", re.ASCII)
_NOT_STRINGS = ("null", "true", "false", "inf", "nan")
