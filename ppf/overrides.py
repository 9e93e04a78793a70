"""Values in the grammar of Hydra's overrides."""

import re
from pathlib import Path


def quoted(text: str | Path) -> str:
    """A string as the value of an override; in quotes unless Hydra reads it as the same string."""
    if _PLAIN.fullmatch(str(text)) and str(text).lower() not in _NOT_STRINGS:
        return str(text)
    # Hydra halves the backslashes before a quotation mark and leaves all others.
    escaped = re.sub(r'(\\*)("|\Z)', lambda m: 2 * m[1] + (m[2] and r"\""), str(text))
    return f'"{escaped}"'


_PLAIN = re.compile(r"(\.{0,2}/|[a-zA-Z_])[\w./+-]*", re.ASCII)
_NOT_STRINGS = ("null", "true", "false", "inf", "nan")
