import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ppf.pruning.compensation import Bias
from ppf.runtime import DynamicModel
from ppf.server.app import create_app
from ppf.server.limits import Limits
from ppf.server.scheduler import Scheduler
from tests.tiny import TinySetup, Uniform

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if messages[0].role == 'assistant' %}{{ raise_exception('who asks?') }}{% endif %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


class Told(Uniform):
    """Uniform policies with a prediction, as an agent has one."""

    def predicted(self, ratio: float) -> tuple[float, float]:
        return 3 + ratio, 0.1


@pytest.fixture
def template() -> str | None:
    """A chat template; a test may parametrise this fixture."""
    return TEMPLATE


@pytest.fixture
def model(tiny: TinySetup, template: str | None) -> DynamicModel:
    tiny.lm.tokenizer.chat_template = template
    ratios = [0.0, 0.2, 0.4]
    return DynamicModel(tiny.pruner(Bias()), Told(tiny.space), ratios=ratios)


@pytest.fixture
def limits(root: Path) -> Limits:
    """The defaults; a test may parametrise this fixture."""
    return instantiate(OmegaConf.load(root / "conf" / "serve.yaml").limits)


@pytest.fixture
def api_key() -> str | None:
    """None; a test may parametrise this fixture."""
    return None


@pytest.fixture
def app(model: DynamicModel, limits: Limits, api_key: str | None) -> FastAPI:
    hosts, scheduler = ["localhost", "127.0.0.1", "[::1]"], Scheduler(model, limits)
    return create_app("org/tiny", scheduler, hosts=hosts, api_key=api_key)


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app, "http://localhost") as client:
        yield client


@pytest.fixture
def address(app: FastAPI) -> Iterator[str]:
    """Of a server that listens on a real socket."""
    listening = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()
