"""Schedules completions: a bounded queue, time limits, and cancellation."""

import asyncio
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fastapi import HTTPException, Request

from ppf.server.writer import Completion


@dataclass(frozen=True)
class Limits:
    """The section `limits` of conf/serve.yaml, which explains its keys."""

    body_mib: float
    queue: int
    seconds: float
    shutdown_seconds: float


class Generation:
    """Asynchronous iterator over the pieces of one completion's text.

    Raises:
        HTTPException: the request exceeded its time limit or was cancelled (503).
        PPFError: the model cannot serve the request.
    """

    def __init__(self) -> None:
        self._pieces: asyncio.Queue[str | Exception] = asyncio.Queue()
        self.put: Callable[[str | Exception], object] = self._pieces.put_nowait

    def __aiter__(self) -> "Generation":
        return self

    async def __anext__(self) -> str:
        piece = await self._pieces.get()
        if isinstance(piece, Exception):
            raise piece
        return piece


class Scheduler:
    """Generates one completion at a time, in the order of arrival.

    One thread prepares completions, another generates them. Waiting requests need no thread.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._preparer, self._generator = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._open: set[asyncio.Task[None]] = set()
        self._last_seconds = 1.0

    def start(self, completion: Completion, request: Request) -> Generation:
        """Queues a completion. If its client disconnects, it is cancelled.

        Raises:
            HTTPException: the queue is full (429).
        """
        if len(self._open) > self.limits.queue:
            raise HTTPException(
                429,
                f"{self.limits.queue} requests wait already: try again later, or restart the"
                " server with a larger limits.queue.",
                {"Retry-After": str(math.ceil(self._last_seconds))},
            )
        generation = Generation()
        work = asyncio.create_task(self._work(completion, generation))
        watch = asyncio.create_task(_disconnected(request))
        watch.add_done_callback(lambda _: work.cancel())
        work.add_done_callback(lambda _: watch.cancel())
        self._open.add(work)
        work.add_done_callback(self._open.discard)
        return generation

    def stop(self) -> None:
        """Cancels every request, waiting or running."""
        for work in self._open:
            work.cancel()

    async def _work(self, completion: Completion, generation: Generation) -> None:
        loop, seconds = asyncio.get_running_loop(), self.limits.seconds

        def write() -> None:
            completion.write(lambda piece: loop.call_soon_threadsafe(generation.put, piece))

        try:
            async with asyncio.timeout(seconds):
                await loop.run_in_executor(self._preparer, completion.prepare)
                await loop.run_in_executor(self._generator, write)
            self._last_seconds = completion.prefill + completion.seconds
            generation.put(StopAsyncIteration())
        except TimeoutError:
            sentence = (
                f"the request took longer than {seconds:g} s, including its waiting time: lower"
                " max_tokens, or restart the server with a larger limits.seconds."
            )
            generation.put(HTTPException(503, sentence))
        except asyncio.CancelledError:
            generation.put(HTTPException(503, "the request was cancelled: the server stops."))
            raise
        except Exception as error:
            generation.put(error)
        finally:
            completion.stop()


async def _disconnected(request: Request) -> None:
    """Returns when the client has disconnected. The request's body must have been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
