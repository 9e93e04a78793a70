"""The one error type that a command turns into a sentence and exit code 1, and kinds of errors."""

from collections.abc import Iterable
from typing import Any
from unicodedata import category


class PPFError(Exception):
    """One printable sentence: what is wrong, and which override fixes it."""

    def __init__(self, sentence: str) -> None:
        super().__init__(printable(sentence))


def reason(error: Exception) -> str:
    """An error's type and first line, to be quoted inside a sentence."""
    return f"{type(error).__name__}: {error}".split("\n")[0].rstrip(".:")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of a GPU or of the machine does not suffice."""
    texts = ("can't allocate memory", "not enough memory")  # PyTorch's, on CPUs
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and any(text in str(error) for text in texts))
    )


def faulty_part(
    place: Iterable[str | int], value: Any, *, missing: bool
) -> list[tuple[str | int, Any]]:
    """The keys of a value that lead to an error of pydantic, each with the part that it leads to.

    Args:
        place: pydantic's `loc`, which also names members of unions; the path ends before the first.
        value: what pydantic has checked.
        missing: the error is that the last key is missing; its part is None.
    """
    path: list[tuple[str | int, Any]] = []
    for key in place:
        if isinstance(value, list) and isinstance(key, int):
            value = value[key]
        elif isinstance(value, dict) and (key in value or missing):
            value = value.get(key)
        else:
            break
        path.append((key, value))
    return path


def printable(text: str) -> str:
    """The text with "?" for each control character, which a terminal would not show but execute."""
    return "".join("?" if category(char) in _STEERING else char for char in text)


_STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")  # controls, formats, surrogates, line separators
