"""Checks of config values: the signature that a `_target_` names is the only schema.

Classes and functions state the types and ranges (`ppf.ranges`) of their arguments. pydantic reads
them here, before any work starts.
"""

import difflib
import inspect
import json
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import cache
from pkgutil import resolve_name
from typing import Any, Unpack, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from ppf.errors import PPFError, faulty_part
from ppf.ranges import STRICT

Keys = tuple[str, ...]
"""The keys that lead to a part of the config."""
Component = dict[str, Any]
"""A part of the config with a `_target_`."""
TARGET = "_target_"
_STRICT = ConfigDict(**STRICT, arbitrary_types_allowed=True)


def components(node: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Component]]:
    """All parts of a plain config that name a `_target_`, outer ones first."""
    if isinstance(node, list):
        node = {str(number): entry for number, entry in enumerate(node)}
    if not isinstance(node, dict):
        return
    if keys == ("trainer",):
        node = {TARGET: "lightning.Trainer", **node}
    if TARGET in node:
        yield keys, node
    for key, value in node.items():
        yield from components(value, (*keys, key))


def check_component(keys: Keys, component: Component) -> None:
    """Checks a component's arguments against the signature of its target.

    Raises:
        PPFError: an argument is unknown, or its value is not what the signature says.
    """
    hints, takes_any = _signature(component[TARGET])
    for name, value in component.items():
        if name.startswith("_") or any(components(value)):
            continue
        if name not in hints and not takes_any:
            raise PPFError(unknown_key((*keys, name), hints))
        check_value(hints.get(name, Any), (*keys, name), value)


def check_value(hint: Any, keys: Keys, value: Any) -> None:
    """Checks a plain value against a type.

    Raises:
        PPFError: it is of another type, or out of range. The message names the key.
    """
    try:
        if adapter := _adapter(hint):
            adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise PPFError(_sentence(error, keys, value)) from None


def unknown_key(keys: Iterable[str], known: Iterable[str]) -> str:
    """The sentence for an unknown key, which names the most similar existing key."""
    *above, last = keys
    near = difflib.get_close_matches(last, known, 1)
    hint = f"do you mean {'.'.join([*above, *near])}?" if near else "--cfg job lists all keys."
    return f"there is no key {'.'.join([*above, last])}: {hint}"


def _sentence(error: ValidationError, keys: Keys, value: Any) -> str:
    """The sentence on the first wrong part of a value."""
    found = error.errors()[0]
    path = faulty_part(found["loc"], value, missing=found["type"] == "missing")
    *_, parent, value = [value, value, *(part for _, part in path)]
    keys = (*keys, *(str(key) for key, _ in path))
    name = ".".join(keys)
    if found["type"] == "missing":
        return f"{name} is missing: give it as {name}=VALUE."
    if found["type"] == "extra_forbidden":
        return unknown_key(keys, parent.keys() - {keys[-1]})
    shown = value if isinstance(value, str) else json.dumps(value)
    if found["type"] == "needs_python_object":
        return f"{name}={shown[:80]} should name a _target_."
    wanted = found["msg"].partition(" should ")[2].split(" after")[0]
    return f"{name}={shown[:80]} should {wanted or 'be different: ' + found['msg']}."


@cache
def _signature(target: str) -> tuple[dict[str, Any], bool]:
    """The types of a target's arguments by name, and whether it takes any others."""
    try:
        found = resolve_name(target)
    except Exception as error:
        cause = str(error).split("\n")[0].rstrip(".") or type(error).__name__
        raise PPFError(
            f"_target_={target} cannot be imported ({cause}): correct it, or put the folder of its"
            " module on PYTHONPATH."
        ) from error
    hints, takes_any = dict[str, Any](), False
    for function in _constructors(found):
        known, takes_any = _hints(function), False
        for name, parameter in inspect.signature(function).parameters.items():
            hint = known.get(name, Any)
            if parameter.kind is not parameter.VAR_KEYWORD:
                hints.setdefault(name, hint)
            elif get_origin(hint) is Unpack:
                hints = get_type_hints(get_args(hint)[0], include_extras=True) | hints
            else:  # handed on to the base class, if there is one
                takes_any = True
        if not takes_any:
            break
    return hints, takes_any


def _constructors(found: Any) -> list[Any]:
    """The functions that take a target's arguments: itself, or constructors of class and bases."""
    if not inspect.isclass(found):
        return [found]
    classes = inspect.getmro(found)[:-1]  # without object
    return [vars(base)["__init__"] for base in classes if "__init__" in vars(base)]


def _hints(function: Any) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError):  # types that only type checkers import; built-in constructors
        return {}


def _adapter(hint: Any) -> TypeAdapter[Any] | None:
    """The pydantic adapter of a type of plain values; None: pydantic cannot check the type."""
    with suppress(TypeError):  # a type that cannot be hashed
        return _built(hint)
    return None


@cache
def _built(hint: Any) -> TypeAdapter[Any] | None:
    for config in (_STRICT, None):  # a TypedDict has a config of its own
        with suppress(Exception):  # pydantic raises several kinds
            return TypeAdapter(hint, config=config)
    return None
