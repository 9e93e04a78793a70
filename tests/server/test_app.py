import json
import math
from threading import Thread
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from ppf.runtime import DynamicModel
from ppf.server.writer import Completion

ASKED: dict[str, Any] = {"prompt": "Hello", "max_tokens": 6, "temperature": 0}


def post(client: TestClient, **changes: Any) -> Any:
    return client.post("/v1/completions", json=ASKED | changes)


def test_health_and_models(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    (entry,) = client.get("/v1/models").json()["data"]
    assert entry["id"] == "tiny" and entry["object"] == "model"
    assert entry["pruning_ratios"] == [0.0, 0.2, 0.4] and entry["compensation"] == "bias"


@pytest.mark.parametrize("ratio", [0.0, 0.4])
def test_a_completion_is_the_pruned_models(
    client: TestClient, model: DynamicModel, ratio: float
) -> None:
    found = post(client, pruning_ratio=ratio).json()
    with model.at(ratio):
        expected = model.complete("Hello", max_new_tokens=6, do_sample=False)
        assert found["pruning_ratio"] == model.ratio
    assert found["object"] == "text_completion" and found["model"] == "tiny"
    assert found["choices"][0]["text"] == expected
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["usage"] == {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}
    assert found["tokens_per_second"] > 0 and found["prefill_seconds"] > 0
    assert model.ratio == 0


def test_a_stream_carries_the_same_text(client: TestClient) -> None:
    whole = post(client, pruning_ratio=0.2).json()
    response = post(client, pruning_ratio=0.2, stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    *lines, end = [line for line in response.text.split("\n\n") if line]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert end == "data: [DONE]"
    assert "".join(x["choices"][0]["text"] for x in events) == whole["choices"][0]["text"]
    reason = whole["choices"][0]["finish_reason"]
    assert [x["choices"][0]["finish_reason"] for x in events[-2:]] == [None, reason]
    assert events[-1]["usage"] == whole["usage"]
    assert events[-1]["pruning_ratio"] == whole["pruning_ratio"]


def test_a_seed_repeats_a_sample(client: TestClient) -> None:
    texts = [
        post(client, temperature=1, max_tokens=12, seed=seed).json()["choices"][0]["text"]
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"prompt": ""}, "prompt: String should have at least 1 character."),
        ({"prompt": ["a", "b"]}, "prompt: Input should be a valid string."),
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1."),
        ({"max_tokens": 5000}, "more than the model's 1024 positions"),
        ({"pruning_ratio": 1.2}, "pruning_ratio: Input should be less than 1."),
        ({"pruning_ratio": "much"}, "pruning_ratio: Input should be a valid number"),
        ({"best_of": 3}, "best_of: Extra inputs are not permitted."),
        ({"model": "gpt"}, "this server has no model 'gpt': give model='tiny'."),
    ],
)
def test_bad_input_is_refused_in_one_sentence(
    client: TestClient, changes: dict[str, Any], sentence: str
) -> None:
    for stream in (False, True):
        response = post(client, stream=stream, **changes)
        assert response.status_code == 400
        assert sentence in response.json()["error"]["message"]


def test_what_is_not_json_is_refused(client: TestClient) -> None:
    response = client.post("/v1/completions", content="{", headers={"content-type": "text/json"})
    assert 400 <= response.status_code < 500 and response.json()["error"]["message"]


def test_a_policy_has_kept_units_and_a_prediction(client: TestClient, model: DynamicModel) -> None:
    found = client.get("/v1/policies", params={"pruning_ratio": 0.4}).json()
    assert [site["kept"] for site in found["sites"]] == model.policy(0.4)
    assert [site["block"] for site in found["sites"][:2]] == ["attention", "mlp"]
    assert 0.4 <= found["pruning_ratio"] < 0.5
    assert 0 < found["of_all_parameters"] < found["pruning_ratio"]
    assert found["predicted_perplexity"]["mean"] == pytest.approx(math.exp(3.4), rel=1e-5)
    low, high = found["predicted_perplexity"]["interval_95"]
    assert low < found["predicted_perplexity"]["mean"] < high
    assert client.get("/v1/policies", params={"pruning_ratio": 2}).status_code == 400


def test_requests_at_different_ratios_do_not_mix(client: TestClient) -> None:
    expected = {r: post(client, pruning_ratio=r).json()["choices"] for r in (0.0, 0.2, 0.4)}
    found: list[tuple[float, Any]] = []

    def ask(ratio: float) -> None:
        found.append((ratio, post(client, pruning_ratio=ratio).json()["choices"]))

    threads = [Thread(target=ask, args=(ratio,)) for ratio in 2 * [*expected]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6 and all(choices == expected[ratio] for ratio, choices in found)


@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_of_the_server_is_an_answer_and_an_exception(
    app: FastAPI, model: DynamicModel, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    def broken(*inputs: Any, **options: Any) -> None:
        raise ArithmeticError("broken")

    monkeypatch.setattr(model, "generate", broken)
    quiet = TestClient(app, "http://localhost", raise_server_exceptions=False)
    response = post(quiet, stream=stream)
    assert response.status_code == 500 and "log" in response.json()["error"]["message"]
    with pytest.raises(ArithmeticError, match="broken"):
        post(TestClient(app, "http://localhost"), stream=stream)


def test_a_fault_inside_a_stream_is_its_last_event(
    app: FastAPI, model: DynamicModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*inputs: Any, streamer: Completion, **options: Any) -> None:
        streamer.on_finalized_text("some text")
        raise ArithmeticError("broken")

    monkeypatch.setattr(model, "generate", broken)
    quiet = TestClient(app, "http://localhost", raise_server_exceptions=False)
    response = post(quiet, stream=True)
    first, last = [line for line in response.text.split("\n\n") if line]
    assert response.status_code == 200 and "some text" in first and '"error"' in last


@pytest.mark.parametrize("path", ["/nowhere", "/v1/nowhere"])
def test_an_unknown_path_is_an_error_in_json(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 404 and response.json()["error"]["message"] == "Not Found"
