"""Tokenises the prompts and chats of clients."""

from pathlib import Path
from typing import Any

from fastapi import HTTPException
from jinja2 import TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template

from ppf.errors import PPFError, reason
from ppf.server.requests import ChatRequest


def read_template(path: str | None) -> str | None:
    """The text of a file with a chat template; None: there is no file.

    Raises:
        PPFError: the file cannot be read, or it is no Jinja template.
    """
    if path is None:
        return None
    try:
        template = Path(path).read_text(encoding="utf-8")
        render_jinja_template([], chat_template=template)  # of no chats: it is only compiled
    except TemplateSyntaxError as error:
        raise PPFError(
            f"chat_template={path} is no Jinja template (line {error.lineno}: {error.message}):"
            " correct the file."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise PPFError(
            f"chat_template={path} cannot be read ({error}): give a text file."
        ) from error
    return template


def text_tokens(tokenizer: PreTrainedTokenizerBase, prompt: str) -> list[int]:
    """The tokens of a prompt."""
    return list(tokenizer(prompt, verbose=False)["input_ids"])


def chat_tokens(
    tokenizer: PreTrainedTokenizerBase, asked: ChatRequest, template: str | None
) -> list[int]:
    """The tokens of a chat, up to where the answer begins.

    Args:
        template: a chat template; None: the tokenizer's.

    Raises:
        PPFError: there is no template, or it refuses the messages.
        HTTPException: the template fails for another reason (500).
    """
    if not has_template(tokenizer, template):
        raise PPFError(
            "this model has no chat template: send a prompt to /v1/completions, or restart the"
            " server with chat_template=FILE."
        )
    messages = [message.plain() for message in asked.messages]
    try:
        found: Any = tokenizer.apply_chat_template(
            messages, chat_template=template, add_generation_prompt=True, return_dict=True
        )
    except Exception as error:  # a template can compute anything
        if type(error) is TemplateError:  # of `raise_exception` in the template
            sentence = f"the chat template refuses the messages ({error}): change them."
            raise PPFError(sentence) from error
        sentence = (
            f"the chat template fails ({reason(error)}): send a prompt to /v1/completions, or"
            " restart the server with another chat_template=FILE."
        )
        raise HTTPException(500, sentence) from error
    return list(found["input_ids"])


def has_template(tokenizer: PreTrainedTokenizerBase, template: str | None) -> bool:
    """Whether chats can be served."""
    return template is not None or tokenizer.chat_template is not None
