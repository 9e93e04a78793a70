from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from ppf.pruning.compensation import Bias
from ppf.runtime import DynamicModel, UniformPolicies
from ppf.server.app import create_app
from tests.tiny import TinySetup


class Told(UniformPolicies):
    """Uniform policies with a prediction, as an agent has one."""

    def predicted(self, ratio: float) -> tuple[float, float]:
        return 3 + ratio, 0.1


@pytest.fixture
def model(tiny: TinySetup) -> DynamicModel:
    ratios = [0.0, 0.2, 0.4]
    return DynamicModel(tiny.pruner(Bias()), Told(tiny.space), ratios=ratios, window=32)


@pytest.fixture
def app(model: DynamicModel) -> FastAPI:
    return create_app(model, "tiny")


@pytest.fixture
def client(app: FastAPI) -> Iterator[TestClient]:
    with TestClient(app) as client:
        yield client
