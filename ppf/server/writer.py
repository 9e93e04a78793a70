"""A completion, piece by piece, written in a thread of its own."""

import time
from collections.abc import Iterator
from queue import Queue
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria, TextStreamer

from ppf.errors import PPFError
from ppf.runtime import DynamicModel
from ppf.server.requests import CompletionRequest


class Completion(TextStreamer, StoppingCriteria):
    """One request's text. Iterate over it once; the other attributes are final after that.

    The model is held at the request's ratio until the text is written or the reader goes away.

    Attributes:
        prompt_tokens, new_tokens: counts.
        ratio: really reached.
        prefill: seconds from the start of the work to the first token.
        seconds: from the first token to the last.

    Raises:
        PPFError: there is no policy for the ratio, or the model has too few positions.
    """

    def __init__(self, model: DynamicModel, request: CompletionRequest) -> None:
        super().__init__(model.lm.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._model, self._request = model, request
        self._inputs = dict(model.lm.tokenizer(request.prompt, return_tensors="pt"))
        self.prompt_tokens, self.new_tokens = self._inputs["input_ids"].shape[1], 0
        self.ratio = self.prefill = self.seconds = 0.0
        self._start = 0.0
        self._pieces: Queue[str | Exception | None] = Queue()
        self._reader_left = Event()
        model.policy(request.pruning_ratio)
        positions = model.lm.model.config.max_position_embeddings
        if self.prompt_tokens + request.max_tokens > positions:
            raise PPFError(
                f"the prompt has {self.prompt_tokens} tokens and max_tokens={request.max_tokens},"
                f" more than the model's {positions} positions: shorten one of them."
            )

    def __iter__(self) -> Iterator[str]:
        writer = Thread(target=self._write, daemon=True)
        writer.start()
        try:
            while (piece := self._pieces.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
        finally:
            self._reader_left.set()
            writer.join()

    @property
    def finish_reason(self) -> str:
        return "length" if self.new_tokens == self._request.max_tokens else "stop"

    @property
    def tokens_per_second(self) -> float | None:
        """Of decoding; None where there was but one token."""
        return (self.new_tokens - 1) / self.seconds if self.seconds else None

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if text:
            self._pieces.put(text)

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        """Called by `generate` after each token."""
        self.new_tokens += 1
        since = time.perf_counter() - self._start
        if self.new_tokens == 1:
            self.prefill = since
        self.seconds = since - self.prefill
        stop = self._reader_left.is_set()
        return torch.full((len(input_ids),), stop, device=input_ids.device)

    def _write(self) -> None:
        try:
            with self._model.at(self._request.pruning_ratio):
                self.ratio, self._start = self._model.ratio, time.perf_counter()
                if self._request.seed is not None:
                    torch.manual_seed(self._request.seed)
                self._model.generate(
                    **self._inputs, **self._options(), streamer=self, stopping_criteria=[self]
                )
        except Exception as error:
            self._pieces.put(error)
        self._pieces.put(None)

    def _options(self) -> dict[str, Any]:
        asked = self._request
        options: dict[str, Any] = {
            "max_new_tokens": asked.max_tokens,
            "pad_token_id": self._model.lm.tokenizer.eos_token_id,
            "do_sample": asked.temperature > 0,
        }
        if asked.temperature > 0:
            options |= {"temperature": asked.temperature, "top_p": asked.top_p, "top_k": 0}
        return options
