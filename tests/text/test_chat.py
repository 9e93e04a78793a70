"""Conversations become text by the tokenizer's chat template."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ppf.conf import read_option
from ppf.errors import PPFError
from ppf.llm import tokens_of
from ppf.llm.sources import byte_tokenizer
from ppf.text.chat import Conversation
from ppf.text.parts import Text, build_text, warn_of_plain_text
from tests.checkpoints import bos_tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</{{ m.role }}>"
    "{% endfor %}"
)


def chats(count: int = 40) -> list[list[dict[str, str]]]:
    return [
        [
            {"role": "user", "content": f"What is {i} + {i}?", "id": str(i)},
            {"role": "assistant", "content": f" It is {2 * i}. "},
        ]
        for i in range(count)
    ]


def text(path: Path) -> Text:
    config = read_option("text", "chat")
    config.update({"path": str(path), "window": 16})
    config.windows = dict.fromkeys(("calibration", "labelling", "test"), 4)
    return build_text(config, "unused")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "chats.jsonl"
    made.write_text("\n".join(json.dumps({"messages": chat}) for chat in chats()))
    return made


def with_template(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    tokenizer.chat_template = TEMPLATE
    tokenizer.bos_token = "<|endoftext|>"
    return tokenizer


def test_a_part_is_written_by_the_template(file: Path) -> None:
    Dataset.from_dict({"messages": chats()}).to_parquet(file.with_suffix(".parquet"))
    tokenizer = with_template(byte_tokenizer())
    for path in (file, file.with_suffix(".parquet")):
        read = text(path)
        first = read.part("calibration")[0]
        assert isinstance(first, Conversation) and list(first.messages[0]) == ["role", "content"]
        number = first.split()[2]
        written = tokenizer.decode(read.stream("calibration", tokenizer))
        start = "<|endoftext|><user>What is"
        assert written.startswith(f"{start} {number} + {number}?</user><assistant>It is ")
        assert written.count(start) == len(read.part("calibration")) == 10
        assert read.tokens("labelling", tokenizer).shape == (4, 16)


def test_bos_begins_windows_not_conversations(file: Path) -> None:
    tokenizer = with_template(bos_tokenizer())
    windows = text(file).tokens("test", tokenizer)
    assert (windows[:, 0] == 0).all() and (windows[:, 1:] != 0).all()


def test_a_missing_template_and_a_refusal_by_it_are_told(file: Path) -> None:
    tokenizer, refusing = byte_tokenizer(), "{{ raise_exception('no user may begin') }}"
    for template, said in ((None, "chat_template is not"), (refusing, "no user may")):
        tokenizer.chat_template = template
        with pytest.raises(PPFError, match=f"write a conversation of text=chat .*{said}"):
            text(file).tokens("test", tokenizer)


def test_with_loss_on_assistant_only_answers_are_scored(file: Path) -> None:
    tokenizer = with_template(byte_tokenizer())
    read = replace(text(file), loss_on="assistant")
    marked, plain = (x.stream("test", tokenizer) for x in (read, text(file)))
    assert torch.equal(tokens_of(marked), plain), "all tokens are read"
    shown = "".join(tokenizer.decode([int(x)]) if x >= 0 else " " for x in marked)
    chats = [document for document in read.part("test") if isinstance(document, Conversation)]
    answers = [chat.messages[1]["content"].strip() + "<" for chat in chats]  # "</assistant>"
    assert re.split(r"\s{9,}", shown.strip()) == answers
    windows = read.tokens("labelling", tokenizer)
    assert windows.shape == (4, 16) and (windows >= 0).any(1).all()


def test_answers_that_the_template_changes_are_not_scored(file: Path) -> None:
    tokenizer = with_template(byte_tokenizer())
    tokenizer.chat_template = TEMPLATE.replace("| trim", "| upper")
    with pytest.raises(PPFError, match="text.loss_on=assistant: text=chat has no conversation"):
        replace(text(file), loss_on="assistant").tokens("test", tokenizer)


def test_plain_text_for_a_model_that_chats_is_warned_of(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer, plain = with_template(byte_tokenizer()), tmp_path / "plain.txt"
    plain.write_text("\n\n".join(f"Paragraph {i}." for i in range(40)))
    warn_of_plain_text(text(file), tokenizer)
    warn_of_plain_text(text(plain), byte_tokenizer())
    assert not capsys.readouterr().out
    warn_of_plain_text(text(plain), tokenizer)
    told = capsys.readouterr().out
    assert "Warning: the model has a chat template" in told and told.count("\n") == 1
