"""Computes the next item while the present one is used."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
_stream = cache(torch.cuda.Stream)  # PyTorch keeps freed memory for each stream


def ahead(
    fetch: Callable[[int], list[Tensor | None]], devices: Sequence[torch.device]
) -> Iterator[list[Tensor | None]]:
    """Yields `fetch(0)`, `fetch(1)` and so on.

    For GPUs, a thread fetches the next item at the same time, on streams of its own, so that copies
    to a GPU overlap with its work. On a CPU this would gain nothing, since both need its cores.

    Args:
        fetch: gives tensors on the device of an item.
        devices: of each item.
    """
    if any(device.type != "cuda" for device in devices):
        yield from map(fetch, range(len(devices)))
        return

    def run(number: int) -> tuple[list[Tensor | None], torch.cuda.Event]:
        side = _stream(devices[number])
        with torch.no_grad(), torch.cuda.stream(side):
            return fetch(number), side.record_event()

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(run, 0)
        for number, device in enumerate(devices):
            found, done = waiting.result()
            if number + 1 < len(devices):
                waiting = pool.submit(run, number + 1)
            present = torch.cuda.current_stream(device)
            present.wait_event(done)
            for tensor in found:
                if tensor is not None:
                    tensor.record_stream(present)
            yield found
