from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.records.gadgets import gadgets


@pytest.fixture(scope="session")
def armed(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, Any]], Path]:
    """All gadgets, and the marker that they leave."""
    folder = tmp_path_factory.mktemp("gadgets")
    return gadgets(folder), folder / "ran"


@pytest.fixture
def marker(armed: tuple[dict[str, dict[str, Any]], Path]) -> Iterator[Path]:
    """A file that is there once a gadget has run."""
    armed[1].unlink(missing_ok=True)
    yield armed[1]
    armed[1].unlink(missing_ok=True)
