"""Admits completions: a bounded queue, time limits, and cancellation."""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor

from fastapi import HTTPException, Request

from ppf.errors import PPFError
from ppf.runtime import DynamicModel
from ppf.server.completion import Completion, Delta
from ppf.server.engine import Engine
from ppf.server.limits import Limits
from ppf.server.requests import AnyRequest

Arrival = Delta | Exception | None
"""A piece of a text, or the error that ends it; None: all texts are complete."""


class Scheduler:
    """Hands completions to the engine, in the order of arrival.

    One thread tokenises prompts, another one generates. Waiting requests need no thread.
    """

    def __init__(self, model: DynamicModel, limits: Limits) -> None:
        self.model, self.limits = model, limits
        self._tokeniser = ThreadPoolExecutor(1)
        self._engine = Engine(model, sequences=limits.sequences, turn_seconds=limits.turn_seconds)
        self._open: set[asyncio.Task[None]] = set()

    def start(self, asked: AnyRequest, request: Request) -> tuple[Completion, AsyncIterator[Delta]]:
        """Queues a request. If its client disconnects, it is cancelled.

        Returns:
            The completion, whose numbers are complete when the iterator ends, and an iterator over
            the pieces of its texts. The iterator raises PPFError if the model cannot serve the
            request, and HTTPException (503) after the time limit or a cancellation.

        Raises:
            HTTPException: the queue is full (429).
            PPFError: the request wants more texts than the server generates at a time.
        """
        limits = self.limits
        if asked.n > limits.sequences:
            raise PPFError(
                f"n={asked.n} is more than limits.sequences={limits.sequences}: lower n, or"
                " restart the server with a larger limits.sequences."
            )
        if len(self._open) >= limits.sequences + limits.queue:
            raise HTTPException(
                429,
                f"{limits.queue} requests wait already: try again later, or restart the server"
                " with a larger limits.queue.",
            )
        pieces, loop = asyncio.Queue[Arrival](), asyncio.get_running_loop()

        def emit(piece: Delta) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        completion = Completion(self.model, asked, emit, longest=limits.context)
        work = asyncio.create_task(self._work(completion, pieces.put_nowait))
        watch = asyncio.create_task(_disconnected(request))
        watch.add_done_callback(lambda _: work.cancel())
        work.add_done_callback(lambda _: watch.cancel())
        self._open.add(work)
        work.add_done_callback(self._open.discard)
        return completion, _until_the_end(pieces)

    async def _work(self, completion: Completion, put: Callable[[Arrival], None]) -> None:
        seconds, loop = self.limits.seconds, asyncio.get_running_loop()
        try:
            async with asyncio.timeout(seconds):
                await loop.run_in_executor(self._tokeniser, completion.prepare)
                await asyncio.wrap_future(self._engine.submit(completion))
            put(None)
        except TimeoutError:
            sentence = (
                f"the request took longer than {seconds:g} s, including its waiting time: lower"
                " max_tokens, or restart the server with a larger limits.seconds."
            )
            put(HTTPException(503, sentence))
        except asyncio.CancelledError:
            put(HTTPException(503, "the request was cancelled."))
            raise
        except Exception as error:
            put(error)
        finally:
            completion.stop()


async def _until_the_end(pieces: asyncio.Queue[Arrival]) -> AsyncIterator[Delta]:
    while (piece := await pieces.get()) is not None:
        if isinstance(piece, Exception):
            raise piece
        yield piece


async def _disconnected(request: Request) -> None:
    """Returns when the client has disconnected. The request's body must have been read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
