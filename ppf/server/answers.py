"""OpenAI's two formats of answers, completions and chats, whole or streamed."""

import time
import uuid
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from ppf.server.completion import Completion, Delta
from ppf.server.requests import ChatRequest
from ppf.server.sampler import TokenScores


class Answer:
    """Writes the answer to one request.

    Args:
        name: name of the model for clients.
    """

    def __init__(self, completion: Completion, name: str) -> None:
        self._completion, self._chat = completion, isinstance(completion.request, ChatRequest)
        self._head = {
            "id": f"{'chatcmpl' if self._chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": "chat.completion" if self._chat else "text_completion",
            "created": int(time.time()),
            "model": name,
        }
        self._event = self._head | ({"object": "chat.completion.chunk"} if self._chat else {})
        self._begun: set[int] = set()

    def whole(self, pieces: Iterable[Delta]) -> dict[str, Any]:
        """The answer as one object."""
        by_choice = defaultdict[int, list[Delta]](list)
        for piece in pieces:
            by_choice[piece.choice].append(piece)
        choices = []
        for number, parts in sorted(by_choice.items()):
            text = "".join(part.text for part in parts)
            tokens = [token for part in parts for token in part.tokens]
            content: dict[str, Any] = {"text": text}
            if self._chat:
                content = {"message": {"role": "assistant", "content": text}}
            choices.append(self._choice(number, content, tokens, parts[-1].finish_reason))
        return self._head | {"choices": choices} | self._counts()

    def part(self, piece: Delta) -> dict[str, Any]:
        """The event of a stream that carries a piece."""
        content: dict[str, Any] = {"text": piece.text}
        if self._chat:
            role = {} if piece.choice in self._begun else {"role": "assistant"}
            content = {"delta": role | {"content": piece.text}}
        self._begun.add(piece.choice)
        choice = self._choice(piece.choice, content, piece.tokens, piece.finish_reason)
        return self._event | {"choices": [choice]}

    def last(self) -> dict[str, Any]:
        """The event with the counts, which ends a stream."""
        return self._event | {"choices": []} | self._counts()

    def _choice(
        self,
        number: int,
        content: dict[str, Any],
        tokens: list[TokenScores],
        finish_reason: str | None,
    ) -> dict[str, Any]:
        logprobs = None
        if self._completion.request.alternatives is not None:
            logprobs = self._chat_logprobs(tokens) if self._chat else self._logprobs(tokens)
        return {"index": number} | content | {"logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(self, tokens: list[TokenScores]) -> dict[str, Any]:
        return {
            "tokens": [self._text(chosen[0]) for chosen, *_ in tokens],
            "token_logprobs": [chosen[1] for chosen, *_ in tokens],
            # Of two tokens with one text, the likelier one counts.
            "top_logprobs": [
                {self._text(token): logprob for token, logprob in reversed(likeliest)}
                for _, *likeliest in tokens
            ],
        }

    def _chat_logprobs(self, tokens: list[TokenScores]) -> dict[str, Any]:
        def entry(token: int, logprob: float) -> dict[str, Any]:
            text = self._text(token)
            return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

        content = [
            entry(*chosen) | {"top_logprobs": [entry(*pair) for pair in likeliest]}
            for chosen, *likeliest in tokens
        ]
        return {"content": content}

    def _text(self, token: int) -> str:
        return str(self._completion.model.lm.tokenizer.decode([token]))

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
