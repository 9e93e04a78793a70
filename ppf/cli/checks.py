"""Checks of a composed config before any work starts: every key, every value, every folder."""

import inspect
import json
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from pkgutil import resolve_name
from tempfile import TemporaryFile
from typing import Any, Unpack, get_args, get_origin, get_type_hints

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning import Trainer
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import optim

from ppf.artefacts import writing
from ppf.cli.explain import first_line, refusal, unknown_key
from ppf.cli.schema import COMMANDS, Component
from ppf.conf import OF_SOURCES
from ppf.errors import PPFError, faulty_part
from ppf.processes import build_fabric
from ppf.ranges import STRICT, Count, Positive

Keys = tuple[str, ...]
"""The keys that lead to a part of the config."""
_TARGET = "_target_"
_FOLDERS = ("paths.run", "paths.artefacts", "paths.cache", "out")
_STRICT = ConfigDict(**STRICT, arbitrary_types_allowed=True)
# Ranges that signatures do not state: of other libraries, or handed on to them.
_FOREIGN: dict[Any, dict[str, Any]] = {
    build_fabric: {"num_nodes": Count},
    Trainer: dict.fromkeys(
        ("max_epochs", "num_nodes", "check_val_every_n_epoch", "log_every_n_steps"), Count
    )
    | {"gradient_clip_val": Positive},
    optim.Adam: {"lr": Positive},
    optim.LBFGS: {"lr": Positive, "max_iter": Count, "history_size": Count},
}


def check(command: str, cfg: DictConfig) -> None:
    """Checks what can be checked without loading a model or a text.

    Raises:
        PPFError: a key is unknown or missing, a value is of the wrong type or out of its range, a
            class refuses its arguments, or a folder cannot be written.
    """
    try:
        given = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    except InterpolationKeyError as error:
        if error.full_key != "agent.allocation":
            raise
        raise PPFError(
            "the agent is an allocation rule that is not in rules=: leave rules= out, or give"
            " another agent."
        ) from error
    check_values(command, given)
    for keys, component in components(given):
        if keys[0] not in ("fabric", "trainer"):  # see check_launch
            check_construction(keys, component)
    for key in _FOLDERS:
        if folder := OmegaConf.select(cfg, key):
            check_folder(Path(folder), key)


def check_values(command: str, given: Any) -> None:
    """Checks the keys and values of a command's plain config.

    Raises:
        PPFError: the first key or value that is wrong.
    """
    try:
        COMMANDS[command].model_validate_json(json.dumps(given), strict=True)
    except ValidationError as error:
        raise PPFError(_sentence(error, (), given)) from None
    # Outer ones first: others may refer to them.
    for keys, component in sorted(components(given), key=lambda found: len(found[0])):
        check_arguments(keys, component)


def components(node: Any, keys: Keys = ()) -> Iterator[tuple[Keys, Component]]:
    """All parts of a plain config that name a `_target_`."""
    if isinstance(node, list):
        for number, entry in enumerate(node):
            yield from components(entry, (*keys, str(number)))
    if not isinstance(node, dict):
        return
    if keys == ("trainer",):
        node = {_TARGET: "lightning.Trainer", **node}
    if _TARGET in node:
        yield keys, node
    for key, value in node.items():
        yield from components(value, (*keys, key))


def check_arguments(keys: Keys, component: Component) -> None:
    """Checks a component's arguments against the signature of its target.

    Raises:
        PPFError: an argument is unknown, or its value is not what the signature says.
    """
    hints, takes_any = _signature(component[_TARGET])
    for name, value in component.items():
        if name.startswith("_") or any(components(value)):
            continue
        if name not in hints and not takes_any:
            raise PPFError(unknown_key((*keys, name), hints))
        try:
            _validate(hints.get(name, Any), value)
        except ValidationError as error:
            raise PPFError(_sentence(error, (*keys, name), value)) from None


def check_construction(keys: Keys, component: Component) -> None:
    """Constructs the component once, if the config has all of its arguments.

    Raises:
        PPFError: its constructor refuses them.
    """
    arguments = {name: value for name, value in component.items() if not name.startswith("_")}
    try:
        inspect.signature(resolve_name(component[_TARGET])).bind(**arguments)
    except TypeError:  # the rest comes later, such as a model
        return
    try:
        instantiate(component)
    except InstantiationException as error:
        raise PPFError(refusal(error, ".".join(keys))) from error


def check_folder(folder: Path, key: str) -> None:
    """Makes the folder and writes one byte in it.

    Raises:
        PPFError: that fails.
    """
    with writing(folder, key):
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder) as file:
            file.write(b"0")


def _sentence(error: ValidationError, keys: Keys, value: Any) -> str:
    """The sentence on what is wrong with a value, or with the first wrong part of it."""
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
        raise PPFError(
            f"_target_={target} cannot be imported ({first_line(error)}): correct it, or put the"
            " folder of its module on PYTHONPATH."
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
    return hints | _FOREIGN.get(found, {}), takes_any


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


def _validate(hint: Any, value: Any) -> None:
    try:
        adapter = _adapter(hint)
    except TypeError:  # a type that cannot be hashed
        return
    if adapter:
        adapter.validate_json(json.dumps(value), strict=True)


@cache
def _adapter(hint: Any) -> TypeAdapter[Any] | None:
    """The pydantic adapter of a type of plain values; None: pydantic cannot check the type."""
    for config in (_STRICT, None):  # a TypedDict has a config of its own
        with suppress(Exception):  # pydantic raises several kinds
            return TypeAdapter(hint, config=config)
    return None


def refuse_unread(command: str, given: Iterable[str], unread: Collection[str]) -> None:
    """Raises PPFError if an override changes a key that the command does not read.

    Args:
        command: for the message.
        given: overrides.
        unread: keys and sections.
    """
    for key in changed(given):
        if lies_in(key, unread):
            raise PPFError(f"{command} does not read {key}: leave it out.")


def check_unread(cfg: DictConfig, given: Iterable[str]) -> None:
    """Raises PPFError if an override changes a key that no command reads beside the other values.

    That is what a path replaces, what belongs to a path that is missing, and what belongs to a step
    that is left out.
    """
    if cfg.get("sequential") is False:
        refuse_unread("a command with sequential=false", given, ["refit_windows"])
    if OmegaConf.select(cfg, "model.path"):
        refuse_unread("model.path=FOLDER", given, ["model.source"])
    if OmegaConf.select(cfg, "text.path"):
        refuse_unread("text.path=FILE", given, OF_SOURCES)
    for place in ("text", "text.training.more"):
        if not OmegaConf.select(cfg, f"{place}.path"):
            refuse_unread(f"a command without {place}.path=FILE", given, [f"{place}.column"])


def changed(overrides: Iterable[str]) -> Iterator[str]:
    """The keys that overrides set, add or delete."""
    return (word.lstrip("+~").partition("=")[0] for word in overrides)


def lies_in(key: str, names: Iterable[str]) -> bool:
    """Whether a key of a config is one of the names, or lies in a section of such a name."""
    return any(key == name or key.startswith(f"{name}.") for name in names)
