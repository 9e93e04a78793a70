"""The benchmark of faults, in its small version, finds none."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_no_fault_is_left(root: Path, cache: str) -> None:
    done = subprocess.run(
        [sys.executable, "benchmarks/faults.py", "--small"],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"]["tried"] == found["kills"]["recovered"] > 0
    assert found["attacks"]["tried"] > 300 and found["attacks"]["executed"] == 0
    assert found["damaged"]["tried"] > 10 and found["damaged"]["tracebacks"] == 0
    assert found["fuzz"] == {"tried": 600, "tracebacks": 0, "wrong": 0}
    assert found["server"]["sigterm_seconds"] < 10 and found["server"]["server_errors"] == 0
    assert found["server"]["body_limit"] and found["server"]["queue_limit"]
