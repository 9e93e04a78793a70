"""What a user gets wrong comes back as one sentence and exit code 1."""

import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.cli.conftest import Run

TINY = (
    "model=tiny",
    "labels.count=16",
    "text.window=64",
    "text.windows={calibration:4,labelling:2,test:2}",
    "logger=csv",
)


def sentence(run: Run, script: str, *overrides: str, **more: str) -> str:
    """The one line on standard error."""
    done = run(script, *overrides, ok=False, **more)
    lines = [x for x in done.stderr.splitlines() if x.startswith("Error")]
    assert done.returncode == 1 and len(lines) == 1
    assert "Traceback" not in done.stdout + done.stderr
    return lines[0]


@pytest.mark.slow
def test_a_wrong_config_leaves_neither_a_wandb_run_nor_a_folder(run: Run, tmp_path: Path) -> None:
    sentence(run, "search", "model=tiny", "labels.count=-1")
    sentence(run, "evaluate", "path=/nowhere")
    sentence(run, "prune", "policy=/nowhere", f"out={tmp_path / 'outputs' / 'out'}")
    assert not (tmp_path / "outputs" / "out").exists()
    assert not [path for path in (tmp_path / "outputs").rglob("*") if path.is_file()]


@pytest.mark.slow
def test_an_interrupt_is_one_line(root: Path, tmp_path: Path) -> None:
    started = subprocess.Popen(
        [sys.executable, "search.py", *TINY, f"paths.outputs={tmp_path}"],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert started.stdout
    assert any("loading PyTorch" in line for line in started.stdout)
    said = ""
    while started.returncode is None:  # a module that is imported may swallow the first one
        started.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            said = started.communicate(timeout=15)[1]
    assert (started.returncode, said) == (130, "Interrupted: the same command resumes.\n")
