import json
import math
from threading import Thread
from typing import Any

import pytest
import torch
from fastapi import FastAPI
from fastapi.testclient import TestClient

from ppf.runtime import DecodingBatch, DynamicModel
from ppf.server.app import create_app
from ppf.server.scheduler import Limits, Scheduler
from ppf.server.text import token_text

ASKED: dict[str, Any] = {"prompt": "Hello", "max_tokens": 6, "temperature": 0}


def post(client: TestClient, **changes: Any) -> Any:
    return client.post("/v1/completions", json=ASKED | changes)


def test_health_and_models(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    (entry,) = client.get("/v1/models").json()["data"]
    assert entry["id"] == "tiny" and entry["object"] == "model"
    assert entry["pruning_ratios"] == [0.0, 0.2, 0.4] and entry["compensation"] == "bias"
    assert client.get("/v1/models/tiny").json() == entry
    assert client.get("/v1/models/gpt").status_code == 404


def test_a_model_may_have_the_name_of_a_repository(model: DynamicModel, limits: Limits) -> None:
    hosts, scheduler = ["localhost"], Scheduler(model, limits)
    app = create_app("org/tiny", scheduler, hosts=hosts, api_key=None, template=None)
    with TestClient(app, "http://localhost") as client:
        assert client.get("/v1/models/org/tiny").json()["id"] == "org/tiny"


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


def events(client: TestClient, **changes: Any) -> list[dict[str, Any]]:
    response = post(client, stream=True, **changes)
    assert response.headers["content-type"].startswith("text/event-stream")
    *lines, end = [line for line in response.text.split("\n\n") if line]
    assert end == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def test_a_stream_carries_the_same_text(client: TestClient) -> None:
    whole = post(client, pruning_ratio=0.2).json()
    *parts, last = events(client, pruning_ratio=0.2, stream_options={"include_usage": True})
    assert "".join(x["choices"][0]["text"] for x in parts) == whole["choices"][0]["text"]
    reason = whole["choices"][0]["finish_reason"]
    assert [x["choices"][0]["finish_reason"] for x in parts[-2:]] == [None, reason]
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert last["pruning_ratio"] == whole["pruning_ratio"]
    assert not any("usage" in event for event in events(client))


def test_a_text_ends_before_the_models_end_token(client: TestClient, model: DynamicModel) -> None:
    asked = {"temperature": 1, "seed": 4, "max_tokens": 12}
    names = post(client, logprobs=1, **asked).json()["choices"][0]["logprobs"]["tokens"]
    place = max(map(names.index, names))  # of a token that does not come earlier
    before = post(client, **asked | {"max_tokens": place}).json()["choices"][0]["text"]
    end = next(t for t in range(257) if token_text(model.lm.tokenizer, t) == names[place])
    for ends in (end, [0, end]):
        model.lm.model.generation_config.eos_token_id = ends
        found = post(client, **asked).json()
        (choice,) = found["choices"]
        assert (choice["text"], choice["finish_reason"]) == (before, "stop")
        assert found["usage"]["completion_tokens"] == place + 1


def test_top_p_reaches_the_sampler(client: TestClient) -> None:
    likeliest, sampled = (
        post(client, max_tokens=12, **how).json()["choices"][0]["text"]
        for how in ({}, {"temperature": 1, "top_p": 1e-6})
    )
    assert sampled == likeliest


def test_a_text_ends_before_a_stop_sequence(client: TestClient) -> None:
    text = post(client, max_tokens=12).json()["choices"][0]["text"]
    stop = text[4:6]
    for given in (stop, ["never", stop]):
        found = post(client, max_tokens=12, stop=given).json()
        (choice,) = found["choices"]
        assert choice == {
            "index": 0,
            "text": text[: text.index(stop)],
            "logprobs": None,
            "finish_reason": "stop",
        }
        assert found["usage"]["completion_tokens"] < 12
        parts = events(client, max_tokens=12, stop=given)
        assert "".join(x["choices"][0]["text"] for x in parts) == choice["text"]


def test_n_texts_are_those_of_consecutive_seeds(client: TestClient) -> None:
    asked = {"temperature": 1, "max_tokens": 12}
    alone = [post(client, seed=s, **asked).json()["choices"][0]["text"] for s in (4, 5, 6)]
    found = post(client, seed=4, n=3, **asked).json()
    assert [choice["text"] for choice in found["choices"]] == alone and len({*alone}) == 3
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2]
    assert found["usage"]["completion_tokens"] == 36 and found["usage"]["prompt_tokens"] == 5
    texts = ["", "", ""]
    for event in events(client, seed=4, n=3, **asked):
        (choice,) = event["choices"]
        texts[choice["index"]] += choice["text"]
    assert texts == alone


def test_logprobs_are_those_of_the_pruned_model(client: TestClient, model: DynamicModel) -> None:
    found = post(client, logprobs=2, max_tokens=1, pruning_ratio=0.4).json()
    logprobs = found["choices"][0]["logprobs"]
    ids = model.lm.tokenizer("Hello", return_tensors="pt")["input_ids"]
    with model.at(0.4), torch.inference_mode():
        expected = model.lm.model(ids).logits[0, -1].log_softmax(-1).topk(2)
    names = [token_text(model.lm.tokenizer, int(token)) for token in expected.indices]
    assert logprobs["tokens"] == names[:1]
    assert logprobs["token_logprobs"] == pytest.approx([float(expected.values[0])], rel=1e-4)
    (best,) = logprobs["top_logprobs"]
    assert best == pytest.approx(dict(zip(names, expected.values.tolist(), strict=True)), rel=1e-4)


HARMLESS = {
    "user": "me",
    "metadata": {"a": "b"},
    "frequency_penalty": 0,
    "presence_penalty": 0.0,
    "logit_bias": {},
    "echo": False,
    "best_of": 1,
    "suffix": None,
    "logprobs": None,
    "stop": None,
    "seed": None,
    "stream_options": None,
    "service_tier": "auto",
}


def test_fields_that_change_nothing_are_accepted(client: TestClient) -> None:
    assert post(client, **HARMLESS).json()["choices"] == post(client).json()["choices"]


def test_documentation_lists_the_routes(client: TestClient) -> None:
    assert "openapi.json" in client.get("/docs").text
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/v1/completions", "/v1/chat/completions", "/v1/models", "/v1/policies"} <= {*paths}


def test_documentation_needs_no_internet(client: TestClient) -> None:
    page = client.get("/docs").text
    assert "//cdn" not in page and client.get("/static-offline-docs/swagger-ui.css").is_success


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
        (
            {"prompt": ["a", "b"]},
            "prompt: this server takes one prompt, as text: send a request for each.",
        ),
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1."),
        ({"max_tokens": 5000}, "more than the model's 1024 positions"),
        ({"pruning_ratio": 1.2}, "pruning_ratio: Input should be less than 1."),
        ({"pruning_ratio": "much"}, "pruning_ratio: Input should be a valid number"),
        ({"best_of": 3}, "this server does not support best_of: leave it out."),
        ({"frequency_penalty": 0.5}, "this server does not support frequency_penalty"),
        ({"beams": 3}, "beams: Extra inputs are not permitted."),
        ({"n": 17}, "n: Input should be less than or equal to 16."),
        ({"stop": ["a", ""]}, "stop.1: String should have at least 1 character."),
    ],
)
def test_bad_input_is_refused_in_one_sentence(
    client: TestClient, changes: dict[str, Any], sentence: str
) -> None:
    for stream in (False, True):
        response = post(client, stream=stream, **changes)
        assert response.status_code == 400
        assert sentence in response.json()["error"]["message"]


def test_a_model_that_is_not_served_is_not_found(client: TestClient) -> None:
    for stream in (False, True):
        response = post(client, model="gpt", stream=stream)
        assert response.status_code == 404
        sentence = "this server has no model 'gpt': give model='tiny'."
        assert response.json()["error"]["message"] == sentence


def test_what_is_not_json_is_refused(client: TestClient) -> None:
    response = client.post("/v1/completions", content="{", headers={"content-type": "text/json"})
    assert 400 <= response.status_code < 500 and response.json()["error"]["message"]


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


@pytest.mark.parametrize("path", ["/nowhere", "/v1/nowhere"])
def test_an_unknown_path_is_an_error_in_json(client: TestClient, path: str) -> None:
    response = client.get(path)
    assert response.status_code == 404 and response.json()["error"]["message"] == "Not Found"
