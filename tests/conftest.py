"""Shape and type checks for our tensors, and what all tests share. No test goes online."""

import gc
import os
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["WANDB_MODE"] = "offline"
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # with more, a forked process waits forever

import hydra
import pytest
import torch
from jaxtyping import install_import_hook

from tests import composing

hydra.compose = composing.compose
# Before the first import of these packages.
install_import_hook(
    ["ppf.space", "ppf.pruning", "ppf.predictor", "ppf.agents", "ppf.recovery"], "beartype.beartype"
)


def pytest_collection_finish() -> None:
    """Searches for garbage leave out what imports have made; they would take half a second each."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="there is no CUDA device"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where weights, texts and artefacts are kept: PPF_CACHE, or a folder of this session.

    All workers of pytest-xdist share it. Commands that a test starts find it in PPF_CACHE.
    """
    base = tmp_path_factory.getbasetemp()
    session = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder = os.environ.setdefault("PPF_CACHE", str(session / "cache"))
    Path(folder).mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def root() -> Path:
    """The project's root."""
    return Path(__file__).parents[1]


@pytest.fixture
def tiny(cache: str):
    """A tiny model of its own, with space, statistics and windows (see tests/tiny.py)."""
    from tests.tiny import tiny_setup

    return tiny_setup(cache)


@pytest.fixture
def lm():
    """A model with random weights, biases and norms (see tests/checkpoints.py)."""
    from tests.checkpoints import CHECKPOINTS, random_model

    return random_model(CHECKPOINTS["llama-biases"])


@pytest.fixture
def no_long_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands may not read the calibration text."""

    def observe(*arguments: object) -> None:
        raise AssertionError("the long work has begun")

    monkeypatch.setattr("ppf.pruning.observed.Observed.make", observe)


@pytest.fixture
def short_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default text is one of short documents, whose articles take a minute to clean."""
    from ppf.text import corpora
    from tests.articles import articles

    monkeypatch.setattr(corpora, "wikipedia_sample", lambda split, **_: articles(320))
