"""Serving: requests a second and latency of serve.py at mixed ratios, against transformers' server.

    python benchmarks/serve.py FOLDER [OVERRIDES, as for serve.py]

FOLDER is that of a run of search.py. transformers serves the same search's dense model in the same
dtype, once with its default and once with its continuous batching. Each server starts twice; the
second start finds all artefacts. Prints a table and, last, one line of JSON.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx
from hydra.utils import instantiate

import ppf
from ppf.llm.loading import resolve_dtype
from ppf.policy_file import read_policy

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5)
CLIENTS, REQUESTS = (1, 4, 16), 12  # at least so many requests, and two for each client
SECONDS = 60  # after which a client sends no further request
PROMPT = "The city of London lies on the river Thames. It was founded by"
ASKED = {"prompt": PROMPT, "max_tokens": 32, "temperature": 0}
PATIENCE = 1800  # seconds that a server may take to start, and a request to be answered


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@contextmanager
def running(command: list[str], port: int) -> Iterator[float]:
    """A server; the value is the time from its start to its first healthy answer, in seconds."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            while not healthy(port):
                assert process.poll() is None, f"{command[0]} ended: {' '.join(command)}"
                assert time.perf_counter() - start < PATIENCE, "the server does not start"
                time.sleep(0.05)
            yield time.perf_counter() - start
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()


def healthy(port: int) -> bool:
    """Whether the server answers."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def load(port: int, clients: int, extras: list[dict[str, Any]]) -> dict[str, float]:
    """What `clients` see that each send their next request when the last one is answered.

    Args:
        extras: fields of the requests, which take turns.
    """
    connection = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE)

    def ask(number: int) -> tuple[float, int] | None:
        sent = time.perf_counter()
        if sent - start > SECONDS and number > clients:
            return None
        answer = connection.post("/v1/completions", json=ASKED | extras[number % len(extras)])
        seconds = time.perf_counter() - sent
        return seconds, answer.raise_for_status().json()["usage"]["completion_tokens"]

    start = time.perf_counter()
    with connection, ThreadPoolExecutor(clients) as threads:
        answers = threads.map(ask, range(max(REQUESTS, 2 * clients)))
        found = [answer for answer in answers if answer]
    elapsed = time.perf_counter() - start
    cuts = quantiles([seconds for seconds, _ in found], n=20, method="inclusive")
    return {
        "requests_per_second": len(found) / elapsed,
        "tokens_per_second": sum(tokens for _, tokens in found) / elapsed,
        "p50_seconds": cuts[9],
        "p95_seconds": cuts[18],
    }


def measure(command: list[str], port: int, extras: list[dict[str, Any]]) -> dict[str, Any]:
    """Start-up seconds of a server, the first and the second time, and its answers to load."""
    with running(command, port) as first:
        pass
    with running(command, port) as second:
        load(port, 1, extras)  # warms up
        loads = {str(clients): load(port, clients, extras) for clients in CLIENTS}
    return {"first_start_seconds": first, "start_seconds": second, "clients": loads}


def read_search(search: Path) -> dict[str, Any]:
    """The search's record, whose classes must be known; see SECURITY.md."""
    if (search / "agent.json").is_file():
        return dict(ppf.load_agent(search).record)
    return read_policy(search / "policy.json", ())


def dense_folder(model: dict[str, Any], cache: Path) -> str:
    """The Hugging Face folder of a dense model, from its config."""
    if model["path"]:
        return str(model["path"])
    return instantiate(model["source"], _partial_=True, _convert_="all")(str(cache))


def main() -> None:
    """Measures all servers."""
    search, overrides, port = Path(sys.argv[1]), sys.argv[2:], free_port()
    record = read_search(search)
    model, dynamic = record["config"]["model"], (search / "agent.json").is_file()
    if dynamic:
        ratios = (0.0, *(ratio for ratio in RATIOS if ratio <= record["ratios"][1]))
    else:
        ratios = (0.0, record["ratio"]["asked"])
    root = Path(__file__).parents[1]
    ours = [sys.executable, str(root / "serve.py"), f"search={search}", f"port={port}"]
    if not any(word.startswith("fabric=") for word in overrides):
        ours.append("fabric=cpu")  # as transformers below
    given = [word.removeprefix("paths.cache=") for word in overrides if "paths.cache=" in word]
    cache = Path([os.environ.get("PPF_CACHE", Path.home() / ".cache" / "ppf"), *given][-1])
    dense = dense_folder(model, cache)
    theirs = [str(Path(sys.executable).with_name("transformers")), "serve", dense]
    given = [word.removeprefix("dtype=") for word in overrides if word.startswith("dtype=")]
    given = [name for name in given if name != "null"]
    dtype = str(resolve_dtype([model["dtype"], *given][-1])).removeprefix("torch.")
    options = {
        "port": port,
        "host": "127.0.0.1",
        "device": "cpu",
        "dtype": dtype,
        "log-level": "error",
    }
    theirs += [text for key, value in options.items() for text in (f"--{key}", str(value))]
    servers = {
        "serve.py, mixed ratios": ([*ours, *overrides], [{"pruning_ratio": r} for r in ratios]),
        "serve.py, dense": ([*ours, *overrides], [{}]),
        "transformers serve": (theirs, [{"model": dense}]),
        "transformers serve, continuous batching": (
            [*theirs, "--continuous-batching"],
            [{"model": dense}],
        ),
    }
    result = {}
    for name, (command, extras) in servers.items():
        found = result[name] = measure(command, port, extras)
        print(f"{name}: starts in {found['start_seconds']:.1f} s", flush=True)
        for clients, numbers in found["clients"].items():
            print(
                f"  {clients:>2} clients  {numbers['requests_per_second']:6.2f} requests/s"
                f"  {numbers['tokens_per_second']:7.1f} tokens/s"
                f"  p50 {numbers['p50_seconds']:6.2f} s  p95 {numbers['p95_seconds']:6.2f} s",
                flush=True,
            )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
