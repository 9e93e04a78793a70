"""The real command, from its first line to its end."""

import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.process import BaseProcess
from pathlib import Path

import httpx
import pytest
from openai import OpenAI

from ppf.errors import PPFError
from ppf.stages.serve import listen
from tests import commands
from tests.searched import write_search

Serve = Callable[..., tuple[BaseProcess, str, Path]]
"""Starts the command; returns it, its address, and the file of what it prints."""


@pytest.fixture
def folder(cache: str, tmp_path: Path) -> Path:
    write_search(tmp_path, cache)
    return tmp_path


@pytest.fixture
def serve(root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    started: list[BaseProcess] = []
    monkeypatch.chdir(root)
    monkeypatch.setattr("ppf.stages.serve._SHUTDOWN_SECONDS", 1)

    def start(*overrides: str) -> tuple[BaseProcess, str, Path]:
        paths = [f"paths.artefacts={folder}/artefacts", f"paths.outputs={folder}/outputs"]
        output, given = folder / "printed.txt", [f"search={folder}", "port=0", *paths, *overrides]
        process = commands.start("serve", given, output)
        started.append(process)
        while process.is_alive():
            said = output.read_text() if output.exists() else ""
            if found := re.search(r"http://\S+:(\d+)", said):
                return process, f"http://127.0.0.1:{found[1]}", output
            time.sleep(0.05)
        raise AssertionError(output.read_text())

    yield start
    for process in started:
        process.kill()
        process.join()


def test_an_unavailable_address_is_refused_in_one_sentence() -> None:
    with listen("127.0.0.1", 0) as taken:
        used, of_no_machine = ("127.0.0.1", taken.getsockname()[1]), ("192.0.2.1", 0)
        for host, port in (used, ("no.", 0), of_no_machine):
            told = f"cannot listen on host={host} port={port} .*: give another port= or host="
            with pytest.raises(PPFError, match=told):
                listen(host, port)


@pytest.mark.slow
def test_a_started_server_chats_with_openais_client_and_ends_at_a_signal(
    serve: Serve, folder: Path
) -> None:
    template = folder / "chat.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    assert list(folder.glob("artefacts/bank/**/*.safetensors")), "each start would build the bank"
    process, address, output = serve(
        "limits.sequences=1", "limits.queue=64", f"chat_template={template}"
    )
    assert "Warning" not in output.read_text()
    client = OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    name = client.models.list().data[0].id
    assert name == "tiny"
    asked = {"model": name, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4}
    answers = [
        client.chat.completions.create(**asked, temperature=0, extra_body={"pruning_ratio": ratio})
        for ratio in (0.0, 0.3)
    ]
    assert [answer.usage.completion_tokens for answer in answers] == [4, 4]
    assert [round(answer.model_extra["pruning_ratio"], 1) for answer in answers] == [0.0, 0.3]
    end_at_work(process, address)
    assert "Traceback" not in output.read_text()


@pytest.mark.slow
def test_the_key_is_asked_for_and_no_logger_gets_it(
    serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PPF_API_KEY", "sesame")
    _, address, _ = serve("logger=csv")
    key = {"Authorization": "Bearer sesame"}
    for headers, status in (({}, 401), (key, 200), (key | {"Host": "evil.com"}, 400)):
        answer = httpx.get(f"{address}/v1/models", headers=headers, timeout=60)
        assert answer.status_code == status, headers
    written = [file for file in (folder / "outputs").rglob("*") if file.is_file()]
    assert any("csv" in file.parts for file in written)
    assert not any(b"sesame" in file.read_bytes() for file in written)


def end_at_work(process: BaseProcess, address: str) -> None:
    """Ends a server that generates, has a queue, and waits for a request's body."""

    def ask(seed: int) -> int:
        asked = {"prompt": "Hello", "max_tokens": 1000, "seed": seed, "stream": seed % 2 == 0}
        try:
            return httpx.post(f"{address}/v1/completions", json=asked, timeout=60).status_code
        except httpx.RemoteProtocolError:  # of a stream that was cut
            return 503

    with ThreadPoolExecutor(65) as threads, half_sent(address):
        answers = [threads.submit(ask, seed) for seed in range(65)]
        time.sleep(1)
        start = time.monotonic()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGTERM)
        process.join(30)
        assert process.exitcode == -signal.SIGTERM
        assert time.monotonic() - start < 10
    statuses = {answer.result() for answer in answers}
    assert 503 in statuses and statuses <= {200, 503}


def half_sent(address: str) -> socket.socket:
    """A request whose body never ends."""
    connection = socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])))
    head = "POST /v1/completions HTTP/1.1", "Host: localhost", "Content-Length: 9"
    connection.sendall("\r\n".join([*head, "", "{"]).encode())
    return connection
