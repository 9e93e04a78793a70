"""Strange requests: each is answered in one sentence, none with a traceback."""

import json
from typing import Any

from fastapi.testclient import TestClient

from ppf.server.requests import ChatRequest, CompletionRequest

CHAT = "/v1/chat/completions"
MESSAGE = {"role": "user", "content": "Hello"}
VALID: dict[str, Any] = {"prompt": "Hello", "max_tokens": 1, "temperature": 0}
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
    ("prompt", "", "prompt: String should have at least 1 character."),
    ("seed", -1, "seed: Input should be greater than or equal to 0."),
    ("temperature", float("nan"), "temperature: Input should be a finite number."),
    ("max_tokens", 10**30, "together at most 1024"),
    ("best_of", 3, "best_of: Input should be 1."),
    ("beams", 3, "beams: Extra inputs are not permitted."),
    ("n", 17, "n=17 is more than limits.sequences=16"),
    ("stop", ["a", ""], "stop.1: String should have at least 1 character."),
]
WRONG_CHATS = [
    ({"messages": [{"role": "user", "content": "x\ud83d"}]}, "messages.0.content"),
    ({"tools": [{"type": "function"}]}, "tools: Value should have at most 0 items"),
    ({"response_format": {"type": "json_object"}}, "response_format.type: Input should be 'text'"),
]


def post(client: TestClient, body: bytes, path: str = "/v1/completions") -> tuple[int, Any]:
    """A status and the answer; exceptions of the server are raised here."""
    response = client.post(path, content=body, headers={"content-type": "application/json"})
    return response.status_code, response.json()


def test_a_body_that_is_no_request_is_refused(client: TestClient) -> None:
    for body in BODIES:
        status, answer = post(client, body)
        assert status == 400 and 0 < len(answer["error"]["message"]) < 200, body[:50]


def test_a_wrong_value_is_refused_in_one_sentence(client: TestClient) -> None:
    for key, value, sentence in WRONG:
        for stream in (False, True):
            status, answer = post(
                client, json.dumps(VALID | {key: value, "stream": stream}).encode()
            )
            assert status == 400 and sentence in answer["error"]["message"], (key, value, answer)
    for changes, sentence in WRONG_CHATS:
        status, answer = post(client, json.dumps({"messages": [MESSAGE]} | changes).encode(), CHAT)
        assert status == 400 and sentence in answer["error"]["message"], (changes, answer)


def test_what_clients_send_without_effect_is_accepted() -> None:
    assert CompletionRequest.model_validate({"prompt": ["Hello"]}).prompt == "Hello"
    answer = {"role": "assistant", "content": "Hi.", "refusal": None, "tool_calls": None}
    given = {
        "messages": [answer],
        "stream_options": {"include_usage": None},
        "max_tokens": None,
        "metadata": {"a": "b"},
        "presence_penalty": 0.0,
        "response_format": {"type": "text"},
    }
    request = ChatRequest.model_validate(given)
    assert request.messages[0].plain() == {"role": "assistant", "content": "Hi."}
    assert request.stream_options.include_usage is False
