"""Conversations: documents that a tokenizer's chat template makes text of."""

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


def joined(documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    """Documents as one text.

    Conversations are as the chat template writes them. Other documents have empty lines between
    them.

    Args:
        name: of the text, for error messages.

    Raises:
        PPFError: the tokenizer has no chat template, or it refuses a conversation.
    """
    found, between = list[str](), ""
    for document in documents:
        if isinstance(document, Conversation):
            found.append(_written(document, tokenizer, name))
            between = ""
        else:
            found += [between, document]
            between = "\n\n"
    return "".join(found)


def _written(chat: Conversation, tokenizer: PreTrainedTokenizerBase, name: str) -> str:
    """A conversation as the template writes it, without the tokens that begin every window."""
    if not tokenizer.chat_template:
        raise PPFError(
            f"text={name} has conversations, but the model's tokenizer has no chat template: give"
            " plain text, or a model with a chat template."
        )
    try:
        text = str(tokenizer.apply_chat_template(chat.messages, tokenize=False))
    except Exception as error:  # templates raise what they like
        raise PPFError(
            f"the chat template refuses a conversation of text={name} ({reason(error)}): remove"
            " such conversations."
        ) from error
    return text.removeprefix(str(tokenizer.decode(leading_tokens(tokenizer))))
