"""OpenAI's own client: chats and completions, over a real socket."""

import re
from pathlib import Path
from typing import Any

import openai
import pytest
from openai import OpenAI

from ppf.runtime import DynamicModel

MESSAGES: list[Any] = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
]
PROMPT = "system: Be brief.\nuser: Hello\nassistant:"
ASKED: dict[str, Any] = {
    "model": "org/tiny",
    "messages": MESSAGES,
    "temperature": 0,
    "max_tokens": 8,
}


@pytest.fixture
def openai_client(address: str) -> OpenAI:
    return OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def test_a_chat_completes_the_template_at_a_ratio(
    openai_client: OpenAI, model: DynamicModel
) -> None:
    for ratio in (0.0, 0.4):
        found = openai_client.chat.completions.create(**ASKED, extra_body={"pruning_ratio": ratio})
        with model.at(ratio):
            expected = model.complete(PROMPT, max_new_tokens=8, do_sample=False)
        assert found.choices[0].message.content == expected
        assert found.choices[0].message.role == "assistant"
        assert found.choices[0].finish_reason == "length"
        assert found.usage.prompt_tokens == len(PROMPT) and found.usage.completion_tokens == 8


def test_the_code_of_the_servers_page_runs(
    address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    page = Path(__file__).parents[2] / "docs" / "serving.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {}
    exec(block.replace("http://localhost:8000", address), names)  # noqa: S102
    assert names["answer"].pruning_ratio >= 0.3 and capsys.readouterr().out


def test_a_streamed_chat_has_the_same_text_and_its_counts(openai_client: OpenAI) -> None:
    whole = openai_client.chat.completions.create(**ASKED)
    *parts, last = openai_client.chat.completions.create(
        **ASKED, stream=True, stream_options={"include_usage": True}
    )
    assert parts[0].choices[0].delta.role == "assistant"
    assert all(part.choices[0].delta.role is None for part in parts[1:])
    text = "".join(part.choices[0].delta.content for part in parts)
    assert text == whole.choices[0].message.content
    assert parts[-1].choices[0].finish_reason == "length"
    assert last.choices == [] and last.usage == whole.usage
    assert last.pruning_ratio == whole.pruning_ratio


def test_the_client_lists_the_model_and_completes_a_prompt(openai_client: OpenAI) -> None:
    (served,) = openai_client.models.list()
    completion = openai_client.completions.create(
        model=served.id, prompt="Hello", max_tokens=3, logprobs=1, temperature=0
    )
    assert completion.usage.completion_tokens == 3
    assert len(completion.choices[0].logprobs.tokens) == 3
    limited = {k: v for k, v in ASKED.items() if k != "max_tokens"}
    short = openai_client.chat.completions.create(**limited, max_completion_tokens=2)
    assert short.usage.completion_tokens == 2
    with pytest.raises(openai.NotFoundError, match="give model='org/tiny'"):
        openai_client.chat.completions.create(**ASKED | {"model": "gpt-4o"})


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('who asks?') }}", r"\(TemplateError: who asks\?\): change them"),
        ("{% for m in messages %}{{ m }", "TemplateSyntaxError"),
        (None, "chat_template is not set"),
    ],
)
def test_a_chat_that_no_template_takes_is_refused(openai_client: OpenAI, reason: str) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError, match=reason) as refused:
            openai_client.chat.completions.create(**ASKED, stream=stream)
        assert "send a prompt to /v1/completions" in refused.value.message
