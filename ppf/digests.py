"""Digests of what a config names: files, folders, and the code of a user's own classes."""

import hashlib
import inspect
import json
import sys
from collections.abc import Iterable
from glob import glob
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from omegaconf import DictConfig

from ppf.artefacts import draft, locked
from ppf.conf import plain
from ppf.errors import PPFError

_INSTALLED = {"site-packages", "dist-packages"}


def digest(path: Path, cache: Path) -> str:
    """SHA-256 of a file's whole content.

    Args:
        cache: folder that remembers digests by path, size and modification time.
    """
    return digests([path], cache)[0]


def digests(paths: Iterable[Path], cache: Path) -> list[str]:
    """The digests of several files; `cache` is read and written once."""
    store, keys, new = cache / "digests.json", list[str](), dict[str, str]()
    known = _known(store)
    for path in paths:
        place, stat = path.resolve(), path.stat()
        keys.append(f"{place}:{stat.st_size}:{stat.st_mtime_ns}")
        if keys[-1] not in known:
            with place.open("rb") as stream:
                new[keys[-1]] = hashlib.file_digest(stream, "sha256").hexdigest()
    if new:
        with locked(store), draft(store) as file:
            file.write_text(json.dumps(_known(store) | new), encoding="utf-8")
    return [(known | new)[key] for key in keys]


def _known(store: Path) -> dict[str, str]:
    try:
        known = json.loads(store.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def contents(
    folder: Path, cache: Path, suffixes: tuple[str, ...] = (), *, subfolders: bool = True
) -> list[tuple[str, str]]:
    """Names and digests of a folder's files.

    Args:
        suffixes: of the files that count; empty: all files.
        subfolders: whether files in subfolders count.
    """
    files = sorted(
        path
        for path in (folder.rglob if subfolders else folder.glob)("*")
        if path.is_file() and (not suffixes or path.suffix in suffixes)
    )
    names = [str(path.relative_to(folder)) for path in files]
    return list(zip(names, digests(files, cache), strict=True))


def named_files(value: Any, cache: Path) -> Any:
    """The value of `data_files` with digests of the local files that it names or matches."""
    if isinstance(value, dict):
        return {key: named_files(entry, cache) for key, entry in value.items()}
    if isinstance(value, list):
        return [named_files(entry, cache) for entry in value]
    file = Path(str(value))
    if file.is_file():
        return [file.name, digest(file, cache)]
    matches = map(Path, sorted(glob(str(value), recursive=True)))  # as `datasets` reads patterns
    return [[match.name, digest(match, cache)] for match in matches if match.is_file()] or value


def source_identity(source: dict[str, Any], cache: Path) -> Any:
    """A plain section `source` of a model or a text; local files and folders count by content."""
    found = {
        key: contents(Path(value), cache)
        if key in ("path", "repository") and Path(value).is_dir()
        else value
        for key, value in source.items()
        if key != "revision" or value
    }
    if found.get("data_files"):
        found["data_files"] = named_files(found["data_files"], cache)
    return with_code(found, cache)


def with_code(config: Any, cache: Path) -> Any:
    """A plain copy of a config, in which each class of the user's own has its code's digest.

    A part of the config whose `_target_` is such a class gets the digest of the source file under
    the key `_code_`.
    """
    if isinstance(config, DictConfig):
        config = plain(config)
    if isinstance(config, list):
        return [with_code(entry, cache) for entry in config]
    if not isinstance(config, dict):
        return config
    found = {key: with_code(value, cache) for key, value in config.items()}
    if file := _own_file(config.get("_target_")):
        found["_code_"] = digest(file, cache)
    return found


def _own_file(target: str | None) -> Path | None:
    """The source file of a class that is neither PPF's nor that of an installed package.

    Raises:
        PPFError: it has none, so nothing would tell when its code changes.
    """
    if target is None or target.startswith("ppf."):
        return None
    try:
        found = resolve_name(target)
    except (ImportError, AttributeError, ValueError):  # reported where it is used
        return None
    defined = inspect.isclass(found) or inspect.isroutine(found)
    # Another object, such as a partial function, is of the module that holds it.
    name = found.__module__ if defined else target.replace(":", ".").rpartition(".")[0]
    module = sys.modules.get(name)
    if module is None or name in sys.builtin_module_names:
        return None
    file = Path(getattr(module, "__file__", None) or "")
    if not file.is_file():
        raise PPFError(
            f"{target} has no source file, so artefacts of its earlier code could not be told"
            " apart: define the class in a module, not in a notebook."
        )
    return file if not _INSTALLED & {*file.parts} else None
