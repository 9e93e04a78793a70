"""Admits completions: a bounded queue, time limits, and cancellation."""

import asyncio
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from fastapi import HTTPException, Request

from ppf.errors import PPFError
from ppf.runtime import DynamicModel
from ppf.server.completion import Completion, Delta, Position
from ppf.server.engine import Engine
from ppf.server.requests import GenerationRequest


@dataclass(frozen=True)
class Limits:
    """The section `limits` of conf/serve.yaml, which explains its keys."""

    body_mib: float
    sequences: int
    context: int
    turn_seconds: float
    queue: int
    seconds: float
    shutdown_seconds: float


class Generation:
    """Asynchronous iterator over places in the queue, and then the pieces of the texts.

    Attributes:
        completion: the work on the request; its numbers are complete when the iterator ends.

    Raises:
        HTTPException: the request exceeded its time limit or was cancelled (503).
        PPFError: the model cannot serve the request.
    """

    completion: Completion

    def __init__(self) -> None:
        self._pieces: asyncio.Queue[Position | Delta | Exception] = asyncio.Queue()
        self.put: Callable[[Position | Delta | Exception], object] = self._pieces.put_nowait

    def __aiter__(self) -> "Generation":
        return self

    async def __anext__(self) -> Position | Delta:
        piece = await self._pieces.get()
        if isinstance(piece, Exception):
            raise piece
        return piece


class Scheduler:
    """Hands completions to the engine, in the order of arrival.

    One thread tokenises prompts, another one generates. Waiting requests need no thread.
    """

    def __init__(self, model: DynamicModel, limits: Limits) -> None:
        self.model, self.limits = model, limits
        self._preparer = ThreadPoolExecutor(1)
        self._engine = Engine(model, sequences=limits.sequences, turn_seconds=limits.turn_seconds)
        self._open: set[asyncio.Task[None]] = set()
        self._last_seconds = 1.0

    def start(
        self, asked: GenerationRequest, read: Callable[[], list[int]], request: Request
    ) -> Generation:
        """Queues a request. If its client disconnects, it is cancelled.

        Args:
            read: as for `Completion`.

        Raises:
            HTTPException: the queue is full (429).
            PPFError: the request wants more texts than the server generates at a time.
        """
        if asked.n > self.limits.sequences:
            raise PPFError(
                f"n={asked.n} is more than limits.sequences={self.limits.sequences}: lower n, or"
                " restart the server with a larger limits.sequences."
            )
        if len(self._open) >= self.limits.sequences + self.limits.queue:
            raise HTTPException(
                429,
                f"{self.limits.queue} requests wait already: try again later, or restart the"
                " server with a larger limits.queue.",
                {"Retry-After": str(math.ceil(self._last_seconds))},
            )
        generation, loop = Generation(), asyncio.get_running_loop()

        def emit(piece: Position | Delta) -> None:
            loop.call_soon_threadsafe(generation.put, piece)

        longest = self.limits.context
        generation.completion = Completion(self.model, asked, read, emit, longest=longest)
        work = asyncio.create_task(self._work(generation))
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

    async def _work(self, generation: Generation) -> None:
        completion, seconds = generation.completion, self.limits.seconds
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(seconds):
                await loop.run_in_executor(self._preparer, completion.prepare)
                await asyncio.wrap_future(self._engine.submit(completion))
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
