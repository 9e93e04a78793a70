"""Generates completions: those at one ratio share a batch, and the ratios take turns."""

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Lock

from jaxtyping import Float
from torch import Tensor

from ppf.runtime import DecodingBatch, DynamicModel
from ppf.server.completion import Choice, Completion, StoppedError


class Engine:
    """Generates completions in one thread, which nothing else may use the model beside.

    Completions start in the order of arrival. Those that have started at one ratio share a batch,
    which any of them may join or leave between two tokens. Batches at other ratios take turns.

    Args:
        sequences: most texts that are generated at a time, over all ratios; other completions wait.
        turn_seconds: length of a turn while other ratios wait for theirs.
    """

    def __init__(self, model: DynamicModel, *, sequences: int, turn_seconds: float) -> None:
        self._model, self._sequences, self._turn_seconds = model, sequences, turn_seconds
        self._thread, self._lock, self._running = ThreadPoolExecutor(1), Lock(), False
        self._waiting: deque[Completion] = deque()
        self._groups: dict[float, _Group] = {}  # the first one has the next turn

    def submit(self, completion: Completion) -> Future[None]:
        """Generates a prepared completion; the future is done when all of its texts are."""
        with self._lock:
            self._waiting.append(completion)
            self._admit()
            if not self._running:
                self._running = True
                self._thread.submit(self._run)
        return completion.done

    def _admit(self) -> None:
        """Starts waiting completions while there is room."""
        self._waiting = deque(c for c in self._waiting if not c.stopped)
        used = sum(group.sequences for group in self._groups.values())
        while self._waiting and used + self._waiting[0].request.n <= self._sequences:
            completion = self._waiting.popleft()
            used += completion.request.n
            ratio = completion.request.pruning_ratio
            self._groups.setdefault(ratio, _Group(self._model)).joining.append(completion)

    def _run(self) -> None:
        while (ratio := self._next()) is not None:
            group = self._groups[ratio]
            try:
                self._model.set_ratio(ratio)
                self._turn(group)
            except Exception as error:
                group.fail(error)
            with self._lock:
                del self._groups[ratio]
                if group.sequences:
                    self._groups[ratio] = group
                self._admit()

    def _next(self) -> float | None:
        """The ratio whose turn it is; None: there is no work, and the thread ends."""
        with self._lock:
            self._running = bool(self._groups)
            return next(iter(self._groups), None)

    def _turn(self, group: "_Group") -> None:
        """Generates at one ratio until its texts have ended, or its time is over."""
        end = time.monotonic() + self._turn_seconds
        while group.sequences:
            group.advance()
            with self._lock:
                self._admit()
            if len(self._groups) > 1 and time.monotonic() > end:
                return


class _Group:
    """The completions at one ratio.

    Attributes:
        joining: completions whose prompts have not been read yet.
    """

    def __init__(self, model: DynamicModel) -> None:
        self._batch, self._rows = DecodingBatch(model.lm.model), list[Choice]()
        self.joining: deque[Completion] = deque()

    @property
    def sequences(self) -> int:
        """Number of texts that are generated, or will be."""
        joining = tuple(self.joining)  # other threads append to it
        return len(self._rows) + sum(completion.request.n for completion in joining)

    def advance(self) -> None:
        """Reads new prompts, and adds one token to each text."""
        while self.joining:
            self._join(self.joining[0])
            self.joining.popleft()
        self._drop()
        if self._rows:
            logits = self._batch.step([row.last for row in self._rows])
            for row, row_logits in zip(self._rows, logits, strict=True):
                _take(row, row_logits)
        self._drop()

    def fail(self, error: Exception) -> None:
        """Ends all completions with an error."""
        for completion in (*self.joining, *(row.completion for row in self._rows)):
            completion.end(error)
        self.joining.clear()
        self._rows = []
        self._batch.keep([])

    def _join(self, completion: Completion) -> None:
        completion.begin()
        try:
            with completion.stoppable():
                logits = self._batch.join(completion.ids, len(completion.choices))
        except Exception as error:
            completion.end(error)
            return
        self._rows += completion.choices
        for choice in completion.choices:
            _take(choice, logits)

    def _drop(self) -> None:
        """Removes the texts that have ended."""
        for completion in {row.completion for row in self._rows}:
            if completion.stopped:
                completion.end(StoppedError())
            elif all(choice.finished for choice in completion.choices):
                completion.end()
        rows = [
            i
            for i, row in enumerate(self._rows)
            if not row.finished and not row.completion.done.done()
        ]
        if len(rows) < len(self._rows):
            self._batch.keep(rows)
            self._rows = [self._rows[i] for i in rows]


def _take(row: Choice, logits: Float[Tensor, " vocabulary"]) -> None:
    """Gives a text its next token; an error ends its completion only."""
    try:
        row.take(logits)
    except Exception as error:
        row.completion.end(error)
