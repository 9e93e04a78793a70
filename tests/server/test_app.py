import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient

from ppf.runtime import DecodingBatch, DynamicModel

ASKED: dict[str, Any] = {"prompt": "Hello", "max_tokens": 6, "temperature": 0}
OWN = ["localhost", "LOCALHOST:9", "127.0.0.1:8000", "[::1]", "[::1]:9"]
FOREIGN = ["evil.com", "localhost.evil.com", "127.0.0.1.evil.com", "evil.com:80", "[::2]", ""]
NO_KEY = ["", "sesame", "Bearer", "Bearer ", "Bearer Sesame", "Basic sesame", b"Bearer \xff"]


def post(client: TestClient, **changes: Any) -> Any:
    return client.post("/v1/completions", json=ASKED | changes)


def choice(client: TestClient, **changes: Any) -> Any:
    return post(client, **changes).json()["choices"][0]


def events(client: TestClient, **changes: Any) -> list[dict[str, Any]]:
    response = post(client, stream=True, **changes)
    assert response.headers["content-type"].startswith("text/event-stream")
    *lines, end = [line for line in response.text.split("\n\n") if line]
    assert end == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_health_and_models(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    (entry,) = client.get("/v1/models").json()["data"]
    assert entry["id"] == "org/tiny" and entry["object"] == "model"
    assert entry["pruning_ratios"] == [0.0, 0.2, 0.4] and entry["compensation"] == "bias"
    assert client.get("/v1/models/org/tiny").json() == entry
    for missing in ("/v1/models/gpt", "/nowhere", "/v1/nowhere"):
        response = client.get(missing)
        assert response.status_code == 404 and response.json()["error"]["message"]


@pytest.mark.parametrize("ratio", [0.0, 0.4])
def test_a_completion_is_the_pruned_models(
    client: TestClient, model: DynamicModel, ratio: float
) -> None:
    found = post(client, pruning_ratio=ratio).json()
    with model.at(ratio):
        expected = model.complete("Hello", max_new_tokens=6, do_sample=False)
        assert found["pruning_ratio"] == model.ratio
    assert found["object"] == "text_completion" and found["model"] == "org/tiny"
    assert found["choices"][0]["text"] == expected
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["usage"] == {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}
    assert found["tokens_per_second"] > 0 and found["prefill_seconds"] > 0


def test_a_text_ends_before_the_models_end_token(client: TestClient, model: DynamicModel) -> None:
    ids = model.lm.tokenizer("Hello", return_tensors="pt")["input_ids"]
    tokens = model.generate(ids, max_new_tokens=12, do_sample=False)[0, 5:].tolist()
    place = max(map(tokens.index, tokens))  # of a token that does not come earlier
    before = choice(client, max_tokens=place)["text"] if place else ""
    for ends in (tokens[place], [0, tokens[place]]):
        model.lm.model.generation_config.eos_token_id = ends
        found = post(client, max_tokens=12).json()
        assert found["choices"][0]["text"] == before
        assert found["choices"][0]["finish_reason"] == "stop"
        assert found["usage"]["completion_tokens"] == place + 1


def test_a_text_ends_before_a_stop_sequence(client: TestClient) -> None:
    text = choice(client, max_tokens=12)["text"]
    stop = text[4:6]
    before = text[: text.index(stop)]
    for given in (stop, ["never", stop]):
        found = post(client, max_tokens=12, stop=given).json()
        ended = {"index": 0, "text": before, "logprobs": None, "finish_reason": "stop"}
        assert found["choices"][0] == ended
        assert found["usage"]["completion_tokens"] < 12
        parts = events(client, max_tokens=12, stop=given)
        assert "".join(x["choices"][0]["text"] for x in parts) == before


def test_seeds_and_top_p_reach_the_sampler(client: TestClient) -> None:
    asked = {"temperature": 1, "max_tokens": 12}
    alone = [choice(client, seed=seed, **asked)["text"] for seed in (4, 5, 6)]
    found = post(client, seed=4, n=3, **asked).json()
    assert [one["text"] for one in found["choices"]] == alone and len({*alone}) == 3
    assert [one["index"] for one in found["choices"]] == [0, 1, 2]
    assert found["usage"]["completion_tokens"] == 36 and found["usage"]["prompt_tokens"] == 5
    texts = ["", "", ""]
    for event in events(client, seed=4, n=3, **asked):
        (one,) = event["choices"]
        texts[one["index"]] += one["text"]
    assert texts == alone
    likeliest = choice(client, max_tokens=12)["text"]
    assert choice(client, top_p=1e-6, **asked)["text"] == likeliest


def test_logprobs_are_those_of_the_pruned_model(client: TestClient, model: DynamicModel) -> None:
    logprobs = choice(client, logprobs=2, max_tokens=1, pruning_ratio=0.4)["logprobs"]
    ids = model.lm.tokenizer("Hello", return_tensors="pt")["input_ids"]
    with model.at(0.4), torch.inference_mode():
        expected = model.lm.model(ids).logits[0, -1].log_softmax(-1).topk(2)
    names = [model.lm.tokenizer.decode([int(token)]) for token in expected.indices]
    assert logprobs["tokens"] == names[:1]
    assert logprobs["token_logprobs"] == pytest.approx([float(expected.values[0])], rel=1e-4)
    assert logprobs["top_logprobs"][0][names[0]] == pytest.approx(
        float(expected.values[0]), rel=1e-4
    )


def test_a_policy_has_kept_units_and_a_prediction(client: TestClient, model: DynamicModel) -> None:
    found = client.get("/v1/policies", params={"pruning_ratio": 0.4}).json()
    assert [site["kept"] for site in found["sites"]] == model.policy(0.4)
    assert [site["block"] for site in found["sites"][:2]] == ["attention", "mlp"]
    assert 0.4 <= found["pruning_ratio"] < 0.5
    removed = int(model.space.removed(torch.tensor(model.policy(0.4))))
    every = sum(parameter.numel() for parameter in model.lm.model.parameters())
    assert found["of_all_parameters"] == pytest.approx(removed / every)
    predicted = found["predicted_perplexity"]
    assert predicted["mean"] == pytest.approx(math.exp(3.4), rel=1e-5)
    edges = [math.exp(3.4 + sign * 1.96 * 0.1) for sign in (-1, 1)]
    assert predicted["interval_95"] == pytest.approx(edges, rel=1e-5)
    for ratio in ("2", "nan", "inf", "-0.1", "1", "1e400", "x", "", "%ED%B3%BF"):
        response = client.get(f"/v1/policies?pruning_ratio={ratio}")
        assert response.status_code == 400 and response.json()["error"]["message"], ratio


def breaking(batch: DecodingBatch, *inputs: Any) -> None:
    raise ArithmeticError("broken")


@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_of_the_server_is_an_answer_and_an_exception(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setattr(DecodingBatch, "join", breaking)
    quiet = TestClient(app, "http://localhost", raise_server_exceptions=False)
    response = post(quiet, stream=stream)
    assert response.status_code == 500 and "log" in response.json()["error"]["message"]
    with pytest.raises(ArithmeticError, match="broken"):
        post(TestClient(app, "http://localhost"), stream=stream)


def test_a_fault_inside_a_stream_is_its_last_event_and_ends_no_other_request(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = TestClient(app, "http://localhost", raise_server_exceptions=False)
    with monkeypatch.context() as patched:
        patched.setattr(DecodingBatch, "step", breaking)
        response = post(quiet, stream=True)
    first, last = [line for line in response.text.split("\n\n") if line]
    assert response.status_code == 200 and '"text"' in first and '"error"' in last
    assert post(quiet).status_code == 200


def test_only_the_machines_own_names_are_answered(client: TestClient) -> None:
    for path in ("/", "/health", "/v1/models"):
        for status, hosts in ((200, OWN), (400, FOREIGN)):
            for host in hosts:
                assert client.get(path, headers={"host": host}).status_code == status, host


@pytest.mark.parametrize("api_key", ["sesame"])
def test_without_the_key_v1_is_closed(client: TestClient) -> None:
    for headers in ({}, *({"authorization": value} for value in NO_KEY)):
        for path in ("/v1/models", "/v1/models/org/tiny", "/v1/policies?pruning_ratio=0"):
            response = client.get(path, headers=headers)
            assert response.status_code == 401, headers
            assert response.headers["www-authenticate"] == "Bearer"
            assert "Authorization: Bearer KEY" in response.json()["error"]["message"]
        for path in ("/v1/completions", "/v1/chat/completions"):
            assert client.post(path, json=ASKED, headers=headers).status_code == 401
    key = {"authorization": "bearer sesame"}
    assert client.post("/v1/completions", json=ASKED, headers=key).status_code == 200
    assert client.get("/").status_code == client.get("/health").status_code == 200


def test_a_body_past_the_limit_is_refused(client: TestClient) -> None:
    def chunks() -> Iterator[bytes]:
        yield from 17 * [b" " * 2**16]

    for body in (b"".join(chunks()), chunks()):
        headers = {"content-type": "application/json"}
        response = client.post("/v1/completions", content=body, headers=headers)
        assert response.status_code == 413
