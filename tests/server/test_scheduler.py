"""Load, limits and clients that leave, over real sockets."""

import json
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import replace
from http.client import HTTPConnection
from typing import Any

import pytest

from ppf.runtime import DynamicModel
from ppf.server.limits import Limits

pytestmark = pytest.mark.usefixtures("slow")

SHORT: dict[str, Any] = {"prompt": "Hello", "max_tokens": 2, "temperature": 0}
LONG = SHORT | {"max_tokens": 1000}
LONG_SECONDS = 20


@pytest.fixture
def limits(limits: Limits, request: pytest.FixtureRequest) -> Limits:
    """The defaults, but for what a test changes."""
    return replace(limits, **getattr(request, "param", {}))


@pytest.fixture
def slow(model: DynamicModel) -> Iterator[None]:
    """Generation takes 20 ms a token at least, and never ends early."""
    model.lm.model.generation_config.eos_token_id = None
    with ExitStack() as hooks:
        for layer in model.lm.adapter.layers(model.lm.model):
            hooks.enter_context(layer.register_forward_hook(lambda *_: time.sleep(0.005)))
        yield


def send(address: str, body: dict[str, Any], **changes: Any) -> HTTPConnection:
    """Sends a completion request and leaves its answer to be read."""
    connection = HTTPConnection(address.removeprefix("http://"), timeout=30)
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/completions", json.dumps(body | changes), headers)
    return connection


def ask(address: str, path: str) -> int:
    """The status of a GET."""
    with closing(HTTPConnection(address.removeprefix("http://"), timeout=30)) as connection:
        connection.request("GET", path)
        return connection.getresponse().status


def error(answer: bytes) -> str:
    return json.loads(answer)["error"]["message"]


@pytest.mark.parametrize("limits", [{"queue": 60}], indirect=True)
def test_other_routes_answer_at_once_under_load(address: str) -> None:
    with ExitStack() as clients:
        for number in range(60):
            clients.enter_context(closing(send(address, LONG, stream=number % 2 == 0)))
        for path in ("/health", "/v1/models", "/v1/policies?pruning_ratio=0.2", "/"):
            start = time.monotonic()
            assert ask(address, path) == 200
            assert time.monotonic() - start < 2


@pytest.mark.parametrize("limits", [{"sequences": 1, "queue": 1}], indirect=True)
def test_a_full_queue_refuses(address: str) -> None:
    with closing(send(address, LONG, stream=True)) as first, closing(send(address, LONG)):
        assert first.getresponse().status == 200
        for stream in (False, True):
            with closing(send(address, SHORT, stream=stream)) as refused:
                answer = refused.getresponse()
                assert answer.status == 429 and "limits.queue" in error(answer.read())


@pytest.mark.parametrize("limits", [{"sequences": 1}], indirect=True)
@pytest.mark.parametrize("stream", [False, True])
def test_completions_of_disconnected_clients_are_cancelled(address: str, stream: bool) -> None:
    running, waiting = send(address, LONG, stream=stream), send(address, LONG, stream=stream)
    time.sleep(0.5)
    start = time.monotonic()
    with closing(send(address, SHORT)) as stays:
        waiting.close()
        running.close()
        assert stays.getresponse().status == 200
    assert time.monotonic() - start < LONG_SECONDS / 4


@pytest.mark.parametrize("limits", [{"seconds": 1.0, "sequences": 1}], indirect=True)
def test_the_time_limit_counts_the_wait_and_frees_the_model(address: str) -> None:
    running, waiting = send(address, LONG), send(address, LONG)
    for late in (running, waiting):
        with closing(late):
            answer = late.getresponse()
            assert answer.status == 503 and "limits.seconds" in error(answer.read())
    with closing(send(address, SHORT)) as served:
        assert served.getresponse().status == 200


@pytest.mark.parametrize("limits", [{"seconds": 1.0}], indirect=True)
def test_a_stream_past_the_time_limit_ends_with_the_error(address: str) -> None:
    with closing(send(address, LONG, stream=True)) as streamed:
        answer = streamed.getresponse()
        events = answer.read().decode().strip().split("\n\n")
    assert answer.status == 200 and len(events) > 1
    assert "limits.seconds" in error(events[-1].removeprefix("data: ").encode())
