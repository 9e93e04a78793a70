"""Artefacts on disk: named by signature, made once by one process, never visible incomplete."""

import errno
import hashlib
import json
import math
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from ppf.errors import PPFError, out_of_memory
from ppf.progress import say, warning
from ppf.ranks import Ranks, on_rank_0

T = TypeVar("T")
FORMATS = {
    "statistics": 2,
    "importance": 2,
    "bank": 3,
    "traits": 1,
    "sensitivity": 2,
    "changes": 1,
    "rounding": 2,
    "sequential": 3,
    "labels": 1,
    "bytes": 1,
    "tested": 4,
    "predictor": 12,
    "costs": 1,
    "pruned": 4,
    "recovery": 5,
    "run": 2,
}
"""Raise a kind's number when its content changes: what older versions made is then made again."""
_DIGITS = 12
_SHORT = 2.0  # seconds; shorter waits for another process are not mentioned


@dataclass(frozen=True)
class Artefacts:
    """The folder of all artefacts, and the processes that share it.

    Args:
        folder: one sub-folder per kind.
        ranks: the processes of one run; only rank 0 makes artefacts.
    """

    folder: Path
    ranks: Ranks

    def get_or_make(
        self, kind: str, file: str, *, read: Callable[[Path], T], make: Callable[[Path], None]
    ) -> T:
        """Reads the artefact `file` of a kind, or makes it; see the function `get_or_make`."""
        return get_or_make(self.folder / kind / file, read=read, make=make, ranks=self.ranks)


def signature(kind: str, *parts: Any) -> str:
    """A short hash of an artefact's kind, its format and the plain values that determine it."""
    text = json.dumps([kind, FORMATS[kind], *parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_DIGITS]


def get_or_make(
    path: Path,
    *,
    read: Callable[[Path], T],
    make: Callable[[Path], None],
    ranks: Ranks | None = None,
) -> T:
    """Reads an artefact; if it is missing or unreadable, one process makes it first.

    Other processes on this machine wait for that one. Ranks must share the file system.

    Args:
        read: raises any exception if the file or folder is damaged.
        make: writes the file or folder at the path that it is given, which does not exist yet;
            must not wait for other ranks.
        ranks: processes that all call this function; only rank 0 makes the artefact.

    Raises:
        PPFError: on every rank, if `make` raises it on rank 0, or if nothing can be written.
    """
    found: list[T] = []

    def work() -> None:
        if (whole := read_if_whole(path, read)) is not None:
            found.append(whole)
            return
        with locked(path):
            if path.exists():  # another process has made it
                with suppress(Exception):
                    found.append(read(path))
                    return
            remove_drafts(path)
            with draft(path) as file:
                make(file)
        found.append(read(path))

    on_rank_0(ranks, work)
    return found[0] if found else read(path)


@contextmanager
def draft(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to, which replaces `path` when the block ends without error.

    Raises:
        PPFError: the disk is full, or the folder cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        made = path.with_name(f".{path.name}.{uuid.uuid4().hex}.draft")
        try:
            yield made
            if path.is_dir():
                shutil.rmtree(path)
            made.replace(path)
        except BaseException:
            _remove(made)
            raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns errors of the disk into a PPFError of one sentence.

    Raises:
        PPFError: the disk is full, or `path` cannot be written.
    """
    try:
        yield
    except Exception as error:
        sentence = disk_failure(error, path)
        if sentence is None or isinstance(error, PPFError):
            raise
        raise PPFError(sentence) from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes JSON with indentation, so that people can read it; NaN and infinity become null."""
    with draft(path) as file:
        file.write_text(json.dumps(_finite(content), indent=2) + "\n", encoding="utf-8")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def remove_drafts(path: Path) -> None:
    """Removes drafts that killed processes have left; call it under the lock."""
    for stale in path.parent.glob(f".{path.name}.*.draft"):
        _remove(stale)


def read_if_whole(path: Path, read: Callable[[Path], T]) -> T | None:
    """The artefact; None if it is missing, or damaged, which is told."""
    if not path.exists():
        return None
    try:
        return read(path)
    except Exception as error:
        if out_of_memory(error):
            raise
        reason = str(error).split("\n")[0] or type(error).__name__
        warning(f"{path} cannot be read ({reason}): it is made again.")
        return None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds the lock of an artefact; waits for another process that holds it."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path.with_name(f".{path.name}.lock"))
        try:
            lock.acquire(timeout=_SHORT)
        except Timeout:
            say(f"Another process is making {path}: waiting for it.")
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def disk_failure(error: BaseException, path: Path | None = None) -> str | None:
    """A sentence for an error that the disk caused; None for other errors.

    Args:
        path: what was being written; None: what the error names.
    """
    text, named = str(error).split("\n")[0], getattr(error, "filename", None)
    if isinstance(error, OSError) and error.errno is not None:
        folder = path and isinstance(named, str) and path.is_relative_to(named)
        if error.errno not in _DISK and not folder:
            return None
        text = str(error.strerror)
    # safetensors and torch wrap the system's error in types of their own.
    elif not any(f"(os error {n})" in text for n in _DISK) and "StreamWriter failed" not in text:
        return None
    return (
        f"cannot {'write' if path else 'read or write'} {path or named or 'a file'} ({text}): free"
        " some space, change the permissions, or choose another folder with paths.outputs,"
        " paths.artefacts, paths.cache or out."
    )


_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
