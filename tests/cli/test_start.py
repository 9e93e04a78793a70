"""What a command does before its slow imports."""

import subprocess
import sys
from pathlib import Path

UNTIL_THE_JOB = """
import sys
import ppf.conf, ppf.progress, ppf.cli.start, ppf.cli.sweep, ppf.cli.explain
assert "torch" not in sys.modules
"""


def test_nothing_slow_is_imported_before_the_first_answer(root: Path) -> None:
    subprocess.run([sys.executable, "-c", UNTIL_THE_JOB], cwd=root, check=True, timeout=120)
