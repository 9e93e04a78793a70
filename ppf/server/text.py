"""Turns tokens into text, piece by piece, up to a stop sequence."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

_INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # stands for the first bytes of a character


class TextPieces:
    """The text of a growing list of tokens.

    Text is held back while it may be the beginning of a stop sequence or of a character.

    Args:
        stops: sequences that end the text, and do not belong to it.
        before: tokens that the text continues. If there are none, some tokenizers drop its first
            space.

    Attributes:
        stopped: whether a stop sequence has been found.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, stops: Sequence[str], before: Sequence[int] = ()
    ) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._tokens = list(before)
        # Tokens from `_context` on are decoded; the first `_read` tokens are out.
        self._context, self._read = 0, len(self._tokens)
        self._held = ""
        self.stopped = False

    def add(self, token: int) -> str:
        """Appends a token, and returns the text that can no longer change."""
        self._tokens.append(token)
        text = self._new()
        return "" if text.endswith(_INCOMPLETE) else self._certain(text)

    def end(self) -> str:
        """The text that was held back; call this once, after the last token."""
        return "" if self.stopped else self._certain(self._new()) + self._held

    def _new(self) -> str:
        """The text of the tokens that are not out yet.

        It is decoded after a few earlier tokens, since some tokenizers drop a leading space.
        """
        before = self._decode(self._tokens[self._context : self._read])
        return self._decode(self._tokens[self._context :])[len(before) :]

    def _certain(self, text: str) -> str:
        self._context, self._read = self._read, len(self._tokens)
        text = self._held + text
        found = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of the text with which the stop sequence begins."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if stop.startswith(text[-n:])), 0)
