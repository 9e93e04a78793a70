"""Strange requests: each is answered, none with a traceback."""

import json
import random
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError
from tokenizers.normalizers import Strip

from ppf.runtime import DynamicModel
from ppf.server.requests import ChatRequest, CompletionRequest

VALID: dict[str, Any] = {"prompt": "Hello", "max_tokens": 1, "temperature": 0}
STRANGE = [
    *(None, True, False, "", "7", "\ud800", "\0", "\U0001f600" * 50, [], {}, [[]], {"a": {}}),
    *(-1, 0, 0.5, 3, 2**31, 2**63, 2**64, -(2**64), 10**400, 1e-300, -1e-300, 5e-324, 1e300),
    *(float("nan"), float("inf"), -float("inf")),
]
BODIES = [
    *(b"", b"{", b"null", b"[]", b'"text"', b"7", b"\xff\xfe", b"\x00" * 9, b"[" * 100_000),
    b'{"prompt":' * 50_000,
    b'{"prompt": "\\ud800"}',
    b'{"\\ud800": 1}',
    b'{"prompt": "Hello", "seed": ' + b"9" * 5000 + b"}",
    b'{"prompt": "Hello", "temperature": 1e999}',
    b'{"prompt": "Hello"} {}',
    b'{"prompt": "Hello", "' + b"k" * 9000 + b'": 1}',
]
WRONG = [
    ("seed", -1, "seed: Input should be greater than or equal to 0."),
    ("seed", 2**64, "seed: Input should be less than 18446744073709551616."),
    ("seed", True, "seed: Input should be a valid integer."),
    ("temperature", 1e-300, "temperature: Input should be 0 or at least 1e-06."),
    ("temperature", float("nan"), "temperature: Input should be a finite number."),
    ("top_p", float("inf"), "top_p: Input should be a finite number."),
    (
        "prompt",
        ["a", "b"],
        "prompt: this server takes one prompt, as text: send a request for each.",
    ),
    ("prompt", [17], "prompt: this server takes one prompt, as text: send a request for each."),
    ("max_tokens", 10**30, "more than the model's 1024 positions"),
    ("max_tokens", 1.5, "max_tokens: Input should be a valid integer."),
]


def post(client: TestClient, body: bytes) -> tuple[int, dict[str, Any]]:
    """A status and the answer; exceptions of the server are raised here."""
    headers = {"content-type": "application/json"}
    response = client.post("/v1/completions", content=body, headers=headers)
    return response.status_code, response.json()


def test_a_body_that_is_no_request_is_refused(client: TestClient) -> None:
    for body in BODIES:
        status, answer = post(client, body)
        assert status == 400 and 0 < len(answer["error"]["message"]) < 200, body[:50]


def test_a_wrong_part_is_named_as_the_request_names_it(client: TestClient) -> None:
    message = {"role": "user", "content": {"a": 1}}
    found = client.post("/v1/chat/completions", json={"messages": [message]})
    assert found.json()["error"]["message"].startswith("messages.0.content: Input should be")
    found = client.post("/v1/chat/completions", json={"messages": [{"role": "user"}]})
    assert found.json()["error"]["message"].startswith("messages.0")


def test_alternatives_need_logprobs(client: TestClient) -> None:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1, "top_logprobs": 2}
    found = client.post("/v1/chat/completions", json=body)
    assert found.status_code == 400
    assert "top_logprobs needs logprobs=true" in found.json()["error"]["message"]


def test_a_wrong_number_is_refused_in_one_sentence(client: TestClient) -> None:
    for key, value, sentence in WRONG:
        status, answer = post(client, json.dumps(VALID | {key: value}).encode())
        assert status == 400 and sentence in answer["error"]["message"], (key, value)


def test_a_list_of_one_prompt_is_that_prompt() -> None:
    assert CompletionRequest.model_validate({"prompt": ["Hello"]}).prompt == "Hello"


def test_null_is_a_default_at_every_level() -> None:
    answer = {"role": "assistant", "content": "Hi.", "refusal": None, "tool_calls": None}
    given = {"messages": [answer], "stream_options": {"include_usage": None}, "max_tokens": None}
    request = ChatRequest.model_validate(given)
    assert request.messages[0].plain() == {"role": "assistant", "content": "Hi."}
    assert request.stream_options.include_usage is False


def test_the_least_temperature_is_sampled_with(client: TestClient) -> None:
    status, answer = post(client, json.dumps(VALID | {"temperature": 1e-6}).encode())
    assert status == 200 and answer["usage"]["completion_tokens"] == 1


def test_random_requests_are_served_or_refused(client: TestClient) -> None:
    generator = random.Random(0)
    names = [*CompletionRequest.model_fields, "best_of", "user", "\ud800"]
    statuses = []
    for _ in range(300):
        changed = {name: generator.choice(STRANGE) for name in generator.sample(names, 2)}
        status, answer = post(client, json.dumps(VALID | changed).encode())
        assert status in (200, 400, 404), changed
        assert ("choices" in answer) == (status == 200) == ("error" not in answer)
        statuses.append(status)
    assert set(statuses) == {200, 400, 404}  # 404: the server has no such model


def test_a_wrong_ratio_has_no_policy(client: TestClient) -> None:
    for ratio in ("nan", "inf", "-0.1", "1", "1e400", "x", "", "%ED%B3%BF"):
        response = client.get(f"/v1/policies?pruning_ratio={ratio}")
        assert response.status_code == 400 and response.json()["error"]["message"], ratio


def test_a_prompt_without_tokens_is_refused(client: TestClient, model: DynamicModel) -> None:
    model.lm.tokenizer.backend_tokenizer.normalizer = Strip()
    status, answer = post(client, json.dumps(VALID | {"prompt": " \n "}).encode())
    assert status == 400 and "the prompt has no tokens" in answer["error"]["message"]


def test_only_few_errors_of_a_body_are_collected() -> None:
    part = {"type": "image"}
    for messages in ([{}] * 5000, [{"role": "user", "content": [part] * 5000}]):
        with pytest.raises(ValidationError) as error:
            ChatRequest.model_validate({"messages": messages})
        assert error.value.error_count() < 5
