import multiprocessing
from multiprocessing.context import ForkContext

import pytest


@pytest.fixture
def processes() -> ForkContext:
    """Starts processes as copies of this one, without the seconds that imports take."""
    return multiprocessing.get_context("fork")
