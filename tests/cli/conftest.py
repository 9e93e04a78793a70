import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.articles import write_articles
from tests.commands import exit_code

Run = Callable[..., subprocess.CompletedProcess[str]]
TINY = (
    *("model=tiny", "labels.count=24", "text.window=64"),
    "text.windows={calibration:4,labelling:2,test:2}",
)
HASTY = (
    *("predictor=residual", "predictor.members=2"),
    *("trainer.max_epochs=5", "predictor.residual_steps=10"),
)
"""The default predictor of train.py, trained for a second only."""


def only(folder: Path, pattern: str) -> Path:
    """The one file below a folder."""
    (found,) = folder.rglob(pattern)
    return found


@pytest.fixture
def text(tmp_path: Path) -> str:
    """The override of a small text."""
    return f"text.path={write_articles(tmp_path)}"


@pytest.fixture
def quick(text: str) -> tuple[str, ...]:
    """Overrides for runs of a few seconds."""
    return ("model=tiny", "debug=limit", "logger=none", text)


@pytest.fixture
def run(
    root: Path,
    cache: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> Run:
    """Runs a root script as a user would; artefacts of tiny runs are shared by the session.

    It runs in this process, without the seconds that imports take.
    """

    def start(
        script: str, *overrides: str, ok: bool = True, artefacts: str = f"{cache}/artefacts"
    ) -> subprocess.CompletedProcess[str]:
        quick = ["paths.outputs=" + str(tmp_path / "outputs"), f"paths.artefacts={artefacts}"]
        arguments = [*overrides, *quick]
        monkeypatch.chdir(root)
        capsys.readouterr()
        code = exit_code(script, arguments)
        done = subprocess.CompletedProcess(arguments, code, *capsys.readouterr())
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        return done

    return start
