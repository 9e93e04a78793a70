"""Ranks are the processes of one run. Values that must be equal on all ranks come from rank 0."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from ppf.errors import PPFError

T = TypeVar("T")


@runtime_checkable
class Ranks(Protocol):
    """The processes of one run; Lightning's Fabric is one."""

    @property
    def is_global_zero(self) -> bool: ...

    @property
    def global_rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def broadcast(self, obj: Any, src: int = 0) -> Any: ...


def own_first(items: Sequence[T], ranks: Ranks | None) -> list[T]:
    """All items, starting with those of this rank; the other ranks start with their own."""
    rank, count = (ranks.global_rank, ranks.world_size) if ranks else (0, 1)
    return sorted(items, key=lambda item: items.index(item) % count != rank)


def on_rank_0(ranks: Ranks | None, work: Callable[[], T]) -> T:
    """Runs `work` on rank 0, and returns its result on every rank.

    Ranks on different hardware round differently. Values that must be equal on all of them, such as
    the policies to measure, therefore come from one.

    Args:
        ranks: None: there is only this process.
        work: returns something small, its tensors on the CPU; must not wait for other ranks.

    Raises:
        PPFError: on every rank, if `work` raises it on rank 0.
    """
    if ranks is None:
        return work()
    answer, sentence = None, None
    if ranks.is_global_zero:
        try:
            answer = work()
        except PPFError as error:
            sentence = str(error)
    answer, sentence = ranks.broadcast((answer, sentence))
    if sentence is not None:
        raise PPFError(sentence)
    return answer
