"""Conversations: documents that a tokenizer's chat template makes text of."""

import re
from collections.abc import Iterable
from typing import Any

from transformers import PreTrainedTokenizerBase

from ppf.errors import PPFError, reason
from ppf.text.windows import leading_tokens


class Conversation(str):
    """The contents of messages as one document, which also has the messages themselves.

    Args:
        messages: each has the text keys `role` and `content`; others are left out.

    Raises:
        ValueError: a message lacks one of them.
    """

    messages: list[dict[str, str]]

    def __new__(cls, messages: Iterable[Any]) -> "Conversation":
        try:
            given = [{key: message[key] for key in ("role", "content")} for message in messages]
            made = super().__new__(cls, "\n\n".join(message["content"] for message in given))
        except (KeyError, TypeError) as error:
            raise ValueError("a message is not {role: TEXT, content: TEXT}") from error
        made.messages = given
        return made


def joined(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, name: str, *, answers: bool
) -> tuple[str, list[tuple[int, int]]]:
    """Documents as one text, and where messages of the assistant begin and end in it.

    Conversations are as the chat template writes them. Other documents have empty lines between
    them.

    Args:
        name: of the text, for error messages.
        answers: whether messages of the assistant are wanted.

    Raises:
        PPFError: the tokenizer has no chat template, or it refuses a conversation; or answers are
            wanted, and there are none.
    """
    found, spans, length, between = list[str](), list[tuple[int, int]](), 0, ""
    for document in documents:
        if isinstance(document, Conversation):
            text = _written(document, tokenizer, name)
            own = _answers(document, text, tokenizer, name) if answers else []
            spans += [(length + start, length + end) for start, end in own]
            between = ""
        else:
            text, between = between + document, "\n\n"
        found.append(text)
        length += len(text)
    if answers and found and not spans:
        raise PPFError(
            f"text.loss_on=assistant: text={name} has no conversation whose messages the chat"
            " template keeps: give text.loss_on=all, or text=chat text.path=FILE.jsonl."
        )
    return "".join(found), spans


def _written(chat: Conversation, tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    """A conversation as the template writes it, without the tokens that begin every window."""
    try:
        text = str(tokenizer.apply_chat_template(chat.messages, tokenize=False))
    except Exception as error:  # templates raise what they like; there may be none
        raise PPFError(
            f"the model's chat template cannot write a conversation of text={name}"
            f" ({reason(error)}): give another text."
        ) from error
    return text.removeprefix(str(tokenizer.decode(leading_tokens(tokenizer))))


def _answers(
    chat: Conversation, text: str, tokenizer: PreTrainedTokenizerBase, name: str
) -> list[tuple[int, int]]:
    """Where the assistant's messages begin and end in a conversation's text.

    The template writes placeholders, in whose places the messages are then. There are none if the
    template changes messages by more than the spaces around them.
    """
    numbered = [m | {"content": f"\ufffc{i}\ufffc"} for i, m in enumerate(chat.messages)]
    pieces = re.split("\ufffc(\\d+)\ufffc", _written(Conversation(numbered), tokenizer, name))
    for change in (str.strip, str):
        found, made = list[tuple[int, int]](), pieces[0]
        for number, piece in zip(pieces[1::2], pieces[2::2], strict=True):
            message = chat.messages[int(number)]
            content = change(message["content"])
            if message["role"] == "assistant":
                found.append((len(made), len(made) + len(content)))
            made += content + piece
        if made == text:
            return found
    return []
