from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

with_key = pytest.mark.parametrize("api_key", ["sesame"])
ASKED = {"prompt": "Hello", "max_tokens": 1}
OWN = ["localhost", "LOCALHOST:9", "127.0.0.1:8000", "[::1]", "[::1]:9"]
FOREIGN = ["evil.com", "localhost.evil.com", "127.0.0.1.evil.com", "evil.com:80", "[::2]", ""]
NO_KEY = ["", "sesame", "Bearer", "Bearer ", "Bearer Sesame", "Basic sesame", b"Bearer \xff"]


def test_only_the_machines_own_names_are_answered(client: TestClient) -> None:
    for path in ("/", "/health", "/v1/models"):
        for status, hosts in ((200, OWN), (400, FOREIGN)):
            for host in hosts:
                assert client.get(path, headers={"host": host}).status_code == status, host


@with_key
def test_without_the_key_v1_is_closed(client: TestClient) -> None:
    for headers in ({}, *({"authorization": value} for value in NO_KEY)):
        for path in ("/v1/models", "/v1/policies?pruning_ratio=0", "/v1/nowhere"):
            response = client.get(path, headers=headers)
            assert response.status_code == 401, headers
            assert response.headers["www-authenticate"] == "Bearer"
            assert "Authorization: Bearer KEY" in response.json()["error"]["message"]
        assert client.post("/v1/completions", json=ASKED, headers=headers).status_code == 401


@with_key
def test_the_key_opens_v1_and_the_rest_needs_none(client: TestClient) -> None:
    headers = {"authorization": "bearer sesame"}
    assert client.get("/v1/models", headers=headers).status_code == 200
    assert client.post("/v1/completions", json=ASKED, headers=headers).status_code == 200
    assert client.get("/").status_code == client.get("/health").status_code == 200


def test_a_body_past_the_limit_is_refused(client: TestClient) -> None:
    def chunks() -> Iterator[bytes]:
        yield from 17 * [b" " * 2**16]

    for body in (b"".join(chunks()), chunks()):
        headers = {"content-type": "application/json"}
        response = client.post("/v1/completions", content=body, headers=headers)
        assert response.status_code == 413
        assert "limits.body_mib" in response.json()["error"]["message"]
