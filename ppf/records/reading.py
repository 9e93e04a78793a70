"""Reads and checks JSON files that may come from strangers."""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from ppf.errors import PPFError, faulty_part
from ppf.records.values import Record

_LARGEST = 16 << 20  # bytes; a policy has some thousands
_LONGEST = 120  # characters of a field's name in a message


def read(
    path: str | Path, schema: type[Record], remedy: str, trusted: Collection[str] = ()
) -> dict[str, Any]:
    """The content of a JSON file, unchanged.

    Args:
        remedy: advice for the error message, as in "give the policy.json of a search".
        trusted: classes of the user's own that the file may name.

    Raises:
        PPFError: the file cannot be read, or its content does not fit the schema.
    """
    try:
        content = _parse(Path(path))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PPFError(f"{path} cannot be read ({reason}): {remedy}.") from error
    return check(content, schema, path, remedy, trusted)


def check(
    content: Any, schema: type[Record], source: object, remedy: str, trusted: Collection[str] = ()
) -> dict[str, Any]:
    """Returns the content unchanged if it fits the schema; further arguments as for `read`.

    Args:
        source: of the content, for the error message.

    Raises:
        PPFError: it does not fit; the message names the first wrong field.
    """
    trusted = (trusted,) if isinstance(trusted, str) else tuple(trusted or ())
    try:
        schema.model_validate(content, context=trusted)
    except ValidationError as error:
        raise PPFError(f"{source}: {_sentence(error, content)}: {remedy}.") from error
    return content


def _parse(path: Path) -> Any:
    if not path.is_file():  # reading a pipe could block, reading a device never end
        raise ValueError("there is no such file")
    with path.open("rb") as stream:
        raw = stream.read(_LARGEST + 1)
    if len(raw) > _LARGEST:
        raise ValueError(f"it is larger than {_LARGEST >> 20} MiB")
    return json.loads(raw.decode(), object_pairs_hook=_unique, parse_constant=_refuse)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a name occurs twice in one object")
    return content


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number in JSON")


def _sentence(error: ValidationError, content: Any) -> str:
    """Describes the first wrong field."""
    first = error.errors(include_url=False, include_input=False)[0]
    path = faulty_part(first["loc"], content, missing=first["type"] == "missing")
    where = ".".join(str(key) for key, _ in path)[:_LONGEST]
    fault = _FAULTS.get(first["type"]) or first["msg"]
    return f"{where} {fault.removeprefix('Input ').removeprefix('Value error, ')}".strip()


_OBJECT = "should be an object"
_FAULTS = {"extra_forbidden": "is unknown", "missing": "is missing"}
_FAULTS |= dict.fromkeys(("dict_type", "model_type", "model_attributes_type"), _OBJECT)
