"""Ranks: two copies of the tests' process, or none at all."""

import multiprocessing
import os
import socket
import warnings
from collections.abc import Callable
from typing import Any


class FakeRanks:
    """A rank without a process: what rank 0 sends, the others receive later.

    All ranks of a run share the list of what was sent.
    """

    def __init__(self, rank: int, sent: list[object]) -> None:
        self.is_global_zero, self.sent = rank == 0, sent
        self.global_rank, self.world_size = rank, 2

    def broadcast(self, obj: object, src: int = 0) -> object:
        if self.is_global_zero:
            self.sent.append(obj)
        return self.sent[-1]


def run_two(work: Callable[..., Any], *given: Any) -> list[int | None]:
    """Calls a function in two copies of this process, which get torchrun's variables.

    A copy does not need the seconds that imports take.

    Returns:
        The exit codes of both.
    """
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "0"}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    shared |= {"TORCHELASTIC_RUN_ID": "test"}
    context = multiprocessing.get_context("fork")
    started = [
        context.Process(target=_rank, args=(work, given, {"RANK": n, "LOCAL_RANK": n, **shared}))
        for n in ("0", "1")
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(300)
    return [process.exitcode for process in started]


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return str(free.getsockname()[1])


def _rank(work: Callable[..., Any], given: tuple[Any, ...], variables: dict[str, str]) -> None:
    os.environ.update(variables)
    warnings.simplefilter("ignore")  # pytest makes errors of them
    work(*given)
