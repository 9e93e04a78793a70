"""The work on one request: its prompt, and the texts that are generated for it."""

import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from threading import Event
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ppf.errors import PPFError
from ppf.runtime import DynamicModel
from ppf.server.requests import AnyRequest, CompletionRequest
from ppf.server.sampler import TokenSampler, TokenScores, scored
from ppf.server.text import TextPieces
from ppf.text.windows import check_embedded


class StoppedError(Exception):
    """Raised inside a cancelled generation."""


@dataclass(frozen=True)
class Delta:
    """The addition of some tokens to one text.

    Args:
        choice: number of the text.
        text: the new part of the text.
        tokens: log-probabilities of the new tokens; empty if the request does not want them.
        finish_reason: OpenAI's reason if the text ends: "stop" or "length".
    """

    choice: int
    text: str
    tokens: list[TokenScores]
    finish_reason: str | None


Emit = Callable[[Delta], object]
_BEFORE = 5  # tokens of the prompt that show whether a new token begins with a space


class Choice:
    """One of the texts of a completion.

    Attributes:
        last: its last token.
        count: number of its tokens.
        finished: whether it has ended.
    """

    def __init__(self, completion: "Completion", number: int) -> None:
        asked, lm = completion.request, completion.model.lm
        seed = None if asked.seed is None else (asked.seed + number) % 2**64
        self.completion, self._number = completion, number
        self._sampler = TokenSampler(asked.temperature, asked.top_p, seed, lm.device)
        continued = isinstance(asked, CompletionRequest)
        before = completion.ids[-_BEFORE:].tolist() if continued else []
        self._text = TextPieces(lm.tokenizer, asked.stop, before)
        self._scored = list[TokenScores]()
        self.last, self.count, self.finished = 0, 0, False

    def take(self, logits: Float[Tensor, " vocabulary"]) -> None:
        """Chooses the next token, and emits the new part of the text."""
        asked, completion = self.completion.request, self.completion
        self.last, self.count = self._sampler(logits), self.count + 1
        if asked.alternatives is not None:
            self._scored.append(scored(logits, self.last, asked.alternatives))
        ended = self.last in completion.end_tokens
        text = "" if ended else self._text.add(self.last)
        reason = "stop" if ended or self._text.stopped else None
        if reason is None and self.count == completion.most_tokens:
            text += self._text.end()
            reason = "stop" if self._text.stopped else "length"
        elif ended:
            text += self._text.end()
        self.finished = reason is not None
        completion.count()
        if text or reason or self.count == 1:
            completion.emit(Delta(self._number, text, self._scored, reason))
            self._scored = []


class Completion:
    """The completion of one request. Call `prepare` before an `Engine` generates it.

    Args:
        emit: gets the pieces of the texts, in the thread that generates them.
        longest: largest number of tokens of the prompt and a text together.

    Attributes:
        ids: the prompt's tokens.
        choices: the texts.
        most_tokens: largest number of new tokens of a text.
        end_tokens: tokens that end a text.
        new_tokens: number of generated tokens, over all texts.
        ratio: achieved share of removed parameters; with budget=params at least the requested one.
        prefill: seconds from the first look at the prompt to the first token.
        seconds: seconds from the first generated token to the last.
        done: is set when the generation has ended.
    """

    def __init__(
        self, model: DynamicModel, request: AnyRequest, emit: Emit, *, longest: int
    ) -> None:
        config = model.lm.model.config
        self.model, self.request, self.emit = model, request, emit
        self._longest = min(longest, config.max_position_embeddings)
        ends = model.lm.model.generation_config.eos_token_id
        self.end_tokens = ends if isinstance(ends, list) else [ends]
        self.new_tokens, self.ratio, self.prefill, self.seconds = 0, 0.0, 0.0, 0.0
        self.done, self._stopped = Future[None](), Event()

    def prepare(self) -> None:
        """Tokenises the prompt.

        Raises:
            PPFError: there is no policy for the ratio, a token of the prompt is not embedded, or
                the prompt and its answer are too long.
        """
        self.model.policy(self.request.pruning_ratio)
        tokenizer = self.model.lm.tokenizer
        self.ids = torch.tensor(self.request.tokens(tokenizer), dtype=torch.long)
        check_embedded(self.ids, tokenizer, "the prompt")
        length = len(self.ids)
        self.most_tokens = self.request.max_tokens or max(1, self._longest - length)
        if not 0 < length <= self._longest - self.most_tokens:
            raise PPFError(
                f"the prompt has {length} tokens and its answer may have {self.most_tokens}, but"
                f" together at most {self._longest}: change the prompt or lower max_tokens."
            )
        self.choices = [Choice(self, number) for number in range(self.request.n)]

    def stop(self) -> None:
        """Stops the generation before the next decoder layer. Any thread may call this."""
        self._stopped.set()

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    @property
    def tokens_per_second(self) -> float | None:
        """Decoding speed; None if each text has one token only."""
        later = self.new_tokens - len(self.choices)
        return later / self.seconds if self.seconds and later else None

    def begin(self) -> None:
        """Starts the clock, and notes the ratio."""
        self.ratio, self._start = self.model.ratio, time.perf_counter()

    def count(self) -> None:
        """Counts and times one token."""
        self.new_tokens += 1
        since = time.perf_counter() - self._start
        if self.new_tokens == 1:
            self.prefill = since
        self.seconds = since - self.prefill

    def end(self, error: Exception | None = None) -> None:
        """Sets `done`, if it is not set yet."""
        if error is not None:
            # The frames of a failed prefill hold its KV cache.
            traceback.clear_frames(error.__traceback__)
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Checks before every layer whether to stop, so that a long prefill also ends soon.

        Raises:
            StoppedError: `stop` was called.
        """

        def check(*_: Any) -> None:
            if self.stopped:
                raise StoppedError

        lm = self.model.lm
        with ExitStack() as hooks:
            for layer in lm.adapter.layers(lm.model):
                hooks.enter_context(layer.register_forward_pre_hook(check))
            yield
