import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(root: Path, cache: str, tmp_path: Path) -> Run:
    """Runs a root script as a user would; artefacts of tiny runs are shared by the session."""

    def start(
        script: str, *overrides: str, ok: bool = True, artefacts: str = f"{cache}/artefacts"
    ) -> subprocess.CompletedProcess[str]:
        quick = ["paths.outputs=" + str(tmp_path / "outputs"), f"paths.artefacts={artefacts}"]
        done = subprocess.run(
            [sys.executable, f"{script}.py", *overrides, *quick],
            cwd=root,
            capture_output=True,
            text=True,
            timeout=300,
            stdin=subprocess.DEVNULL,
        )
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        return done

    return start
