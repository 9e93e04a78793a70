"""A completion, generated piece by piece in a worker thread."""

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from threading import Event
from typing import Any

import torch
from torch import Tensor
from transformers import TextStreamer

from ppf.errors import PPFError
from ppf.runtime import DynamicModel
from ppf.server.requests import CompletionRequest


class StoppedError(Exception):
    """Raised inside a cancelled generation."""


class Completion(TextStreamer):
    """The completion of one request. Call `prepare`, then `write`, then read the attributes.

    Attributes:
        prompt_tokens: number of tokens in the prompt.
        new_tokens: number of generated tokens.
        ratio: achieved pruning ratio, at least the requested one.
        prefill: seconds from the start of the generation to the first token.
        seconds: seconds from the first generated token to the last.
    """

    def __init__(self, model: DynamicModel, request: CompletionRequest) -> None:
        super().__init__(model.lm.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._model, self._request = model, request
        self._inputs: dict[str, Tensor] = {}
        self._emit: Callable[[str], object]
        self._stopped = Event()
        self._start = 0.0
        self.prompt_tokens = self.new_tokens = 0
        self.ratio = self.prefill = self.seconds = 0.0

    def prepare(self) -> None:
        """Tokenises the prompt and checks the request against the model.

        Raises:
            PPFError: the prompt has no tokens, the model has too few positions, or there is no
                policy for the ratio.
        """
        asked = self._request
        self._model.policy(asked.pruning_ratio)
        self._inputs = dict(self.tokenizer(asked.prompt, return_tensors="pt", verbose=False))
        self.prompt_tokens = self._inputs["input_ids"].shape[1]
        if not self.prompt_tokens:
            raise PPFError("the prompt has no tokens: send some text.")
        positions = self._model.lm.model.config.max_position_embeddings
        if self.prompt_tokens + asked.max_tokens > positions:
            raise PPFError(
                f"the prompt has {self.prompt_tokens} tokens; with max_tokens={asked.max_tokens}"
                f" this is more than the model's {positions} positions: shorten one of them."
            )

    def write(self, emit: Callable[[str], object]) -> None:
        """Generates the text, and calls `emit` with each piece; the model is locked meanwhile.

        The first piece follows the first token, and is empty if no character is complete yet.

        Raises:
            StoppedError: `stop` was called.
        """
        self._emit = emit
        with self._model.at(self._request.pruning_ratio), self._stoppable():
            self.ratio, self._start = self._model.ratio, time.perf_counter()
            if self._request.seed is not None:
                torch.manual_seed(self._request.seed)
            self._model.generate(**self._inputs, **self._options(), streamer=self)

    def stop(self) -> None:
        """Stops `write` before the next decoder layer. Any thread may call this."""
        self._stopped.set()

    @property
    def finish_reason(self) -> str:
        """OpenAI's reason for the end: "length" at the token limit, otherwise "stop"."""
        return "length" if self.new_tokens == self._request.max_tokens else "stop"

    @property
    def tokens_per_second(self) -> float | None:
        """Decoding speed; None if only one token was generated."""
        return (self.new_tokens - 1) / self.seconds if self.seconds else None

    def put(self, value: Tensor) -> None:
        """Counts and times tokens: `generate` calls it with the prompt, then with each token."""
        if not self.next_tokens_are_prompt:
            self.new_tokens += 1
            since = time.perf_counter() - self._start
            if self.new_tokens == 1:
                self.prefill = since
            self.seconds = since - self.prefill
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Emits a piece of text."""
        if text or self.new_tokens == 1:
            self._emit(text)

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Checks before every layer whether to stop, so that a long prefill also ends soon."""
        lm = self._model.lm
        with ExitStack() as hooks:
            for layer in lm.adapter.layers(lm.model):
                hooks.enter_context(layer.register_forward_pre_hook(self._check))
            yield

    def _check(self, *_: Any) -> None:
        if self._stopped.is_set():
            raise StoppedError

    def _options(self) -> dict[str, Any]:
        asked = self._request
        options: dict[str, Any] = {
            "max_new_tokens": asked.max_tokens,
            "pad_token_id": self.tokenizer.eos_token_id,
            "do_sample": asked.temperature > 0,
        }
        if asked.temperature > 0:
            options |= {"temperature": asked.temperature, "top_p": asked.top_p, "top_k": 0}
        return options
