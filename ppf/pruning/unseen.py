"""A holder that hides objects from the tools that walk through modules."""

from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Unseen(Generic[T]):
    """Holds objects that checkpoints and DDP must not see."""

    def __init__(self, value: T) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> "Unseen[T]":
        return self
