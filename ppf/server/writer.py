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
    """Raised inside a generation that was cancelled."""


class Completion(TextStreamer):
    """One request's text. Call `prepare`, then `write`; the attributes are final after that.

    Attributes:
        prompt_tokens, new_tokens: counts.
        ratio: the pruning ratio reached, at least the one that the request names.
        prefill: seconds from the start of the generation to the first token.
        seconds: from the first token to the last.
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
            raise PPFError("the prompt has no tokens: give some text.")
        positions = self._model.lm.model.config.max_position_embeddings
        if self.prompt_tokens + asked.max_tokens > positions:
            raise PPFError(
                f"the prompt has {self.prompt_tokens} tokens and max_tokens={asked.max_tokens},"
                f" more than the model's {positions} positions: shorten one of them."
            )

    def write(self, emit: Callable[[str], object]) -> None:
        """Generates the text, hands each piece to `emit`, and holds the model meanwhile.

        The first piece comes with the first token, even if no character is complete yet.

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
        """Makes `write` end before the next decoder layer; any thread may call it."""
        self._stopped.set()

    @property
    def finish_reason(self) -> str:
        return "length" if self.new_tokens == self._request.max_tokens else "stop"

    @property
    def tokens_per_second(self) -> float | None:
        """Of decoding; None after a single token."""
        return (self.new_tokens - 1) / self.seconds if self.seconds else None

    def put(self, value: Tensor) -> None:
        """Called by `generate` with the prompt, then with each new token."""
        if not self.next_tokens_are_prompt:
            self.new_tokens += 1
            since = time.perf_counter() - self._start
            if self.new_tokens == 1:
                self.prefill = since
            self.seconds = since - self.prefill
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text or self.new_tokens == 1:
            self._emit(text)

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Looks at the stop event before every layer, so that a long prefill ends soon too."""
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
