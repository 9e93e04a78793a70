from collections.abc import Iterator

import pytest

from ppf.threads import cpu_threads


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As the runner does: on small tensors threads mostly wait for each other."""
    with cpu_threads(1):
        yield
