"""OpenAI's two formats of answers, completions and chats, whole or streamed."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Protocol

from transformers import PreTrainedTokenizerBase

from ppf.server.completion import Completion, Delta
from ppf.server.sampler import TokenScore
from ppf.server.text import token_bytes, token_text


class Format(Protocol):
    """How one route writes its answers.

    Attributes:
        prefix: of the answer's id.
        whole, part: values of "object" in whole answers, and in the events of a stream.
    """

    prefix: str
    whole: str
    part: str

    def content(self, text: str) -> dict[str, Any]:
        """The fields of a choice of a whole answer that carry the text."""

    def delta(self, text: str, first: bool) -> dict[str, Any]:
        """The fields of a choice in a stream that carry a piece.

        Args:
            first: whether it is the first piece of the choice.
        """

    def logprobs(
        self, tokens: list[TokenScore], tokenizer: PreTrainedTokenizerBase
    ) -> dict[str, Any]:
        """The log-probabilities of tokens."""


class TextFormat:
    """Answers of /v1/completions."""

    prefix, whole, part = "cmpl", "text_completion", "text_completion"

    def content(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def delta(self, text: str, first: bool) -> dict[str, Any]:
        return {"text": text}

    def logprobs(
        self, tokens: list[TokenScore], tokenizer: PreTrainedTokenizerBase
    ) -> dict[str, Any]:
        likeliest: list[dict[str, float]] = []
        for scored in tokens:
            likeliest.append({})
            for token, logprob in scored.likeliest:  # of two with one text, the likelier one counts
                likeliest[-1].setdefault(token_text(tokenizer, token), logprob)
        return {
            "tokens": [token_text(tokenizer, scored.token) for scored in tokens],
            "token_logprobs": [scored.logprob for scored in tokens],
            "top_logprobs": likeliest,
        }


class ChatFormat:
    """Answers of /v1/chat/completions."""

    prefix, whole, part = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def content(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text}}

    def delta(self, text: str, first: bool) -> dict[str, Any]:
        return {"delta": ({"role": "assistant"} if first else {}) | {"content": text}}

    def logprobs(
        self, tokens: list[TokenScore], tokenizer: PreTrainedTokenizerBase
    ) -> dict[str, Any]:
        def entry(token: int, logprob: float) -> dict[str, Any]:
            text, content = token_text(tokenizer, token), list(token_bytes(tokenizer, token))
            return {"token": text, "logprob": logprob, "bytes": content}

        content = [
            entry(scored.token, scored.logprob)
            | {"top_logprobs": [entry(*pair) for pair in scored.likeliest]}
            for scored in tokens
        ]
        return {"content": content}


class Answer:
    """Writes the answer to one request.

    Args:
        head: the fields that all parts of the answer begin with, besides "object".
    """

    def __init__(self, written: Format, completion: Completion, head: dict[str, Any]) -> None:
        self._format, self._completion, self._head = written, completion, head
        self._begun: set[int] = set()

    def whole(self, pieces: Iterable[Delta]) -> dict[str, Any]:
        """The answer as one object."""
        by_choice = defaultdict[int, list[Delta]](list)
        for piece in pieces:
            by_choice[piece.choice].append(piece)
        choices = []
        for number, parts in sorted(by_choice.items()):
            text = self._format.content("".join(part.text for part in parts))
            tokens = [token for part in parts for token in part.tokens]
            choices.append(self._choice(number, text, tokens, parts[-1].finish_reason))
        head = {"object": self._format.whole} | self._head
        return head | {"choices": choices} | self._counts()

    def part(self, piece: Delta) -> dict[str, Any]:
        """The event of a stream that carries a piece."""
        delta = self._format.delta(piece.text, piece.choice not in self._begun)
        self._begun.add(piece.choice)
        choice = self._choice(piece.choice, delta, piece.tokens, piece.finish_reason)
        return {"object": self._format.part} | self._head | {"choices": [choice]}

    def last(self) -> dict[str, Any]:
        """The event with the counts, which ends a stream."""
        return {"object": self._format.part} | self._head | {"choices": []} | self._counts()

    def _choice(
        self, number: int, text: dict[str, Any], tokens: list[TokenScore], finish_reason: str | None
    ) -> dict[str, Any]:
        logprobs = None
        if self._completion.request.alternatives is not None:
            logprobs = self._format.logprobs(tokens, self._completion.model.lm.tokenizer)
        return {"index": number} | text | {"logprobs": logprobs, "finish_reason": finish_reason}

    def _counts(self) -> dict[str, Any]:
        completion = self._completion
        prompt, new = len(completion.ids), completion.new_tokens
        usage = {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}
        return {
            "usage": usage,
            "pruning_ratio": completion.ratio,
            "prefill_seconds": completion.prefill,
            "tokens_per_second": completion.tokens_per_second,
        }
