"""Computes the next item while the present one is used."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def ahead(
    fetch: Callable[[int], list[Tensor | None]], count: int, device: torch.device
) -> Iterator[list[Tensor | None]]:
    """Yields `fetch(0)`, `fetch(1)` and so on.

    For a GPU, a thread fetches the next item meanwhile, on a stream of its own, so that copies to
    the GPU overlap with its work. On a CPU this would gain nothing, since both need its cores.

    Args:
        fetch: gives tensors on the device.
        count: number of items.
        device: the device.
    """
    if device.type != "cuda":
        yield from map(fetch, range(count))
        return
    side = torch.cuda.Stream(device)

    def run(number: int) -> tuple[list[Tensor | None], torch.cuda.Event]:
        with torch.no_grad(), torch.cuda.stream(side):
            return fetch(number), side.record_event()

    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(run, 0)
        for number in range(count):
            found, done = waiting.result()
            if number + 1 < count:
                waiting = pool.submit(run, number + 1)
            present = torch.cuda.current_stream(device)
            present.wait_event(done)
            for tensor in found:
                if tensor is not None:
                    tensor.record_stream(present)
            yield found
