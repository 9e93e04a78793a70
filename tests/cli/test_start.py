"""What a command does before its slow imports."""

import subprocess
import sys
from pathlib import Path

import pytest

from ppf.cli import start

UNTIL_THE_JOB = """
import sys
import ppf.conf, ppf.progress, ppf.cli.start, ppf.cli.sweep, ppf.cli.explain
assert "torch" not in sys.modules
"""


def test_nothing_slow_is_imported_before_the_first_answer(root: Path) -> None:
    subprocess.run([sys.executable, "-c", UNTIL_THE_JOB], cwd=root, check=True, timeout=120)


def test_rank_0_answers_before_the_slow_imports(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    start._answer("search")
    assert capsys.readouterr().out == "", "PyTorch is loaded already"
    monkeypatch.delitem(sys.modules, "torch")
    start._answer("search")
    assert capsys.readouterr().out == "search: loading PyTorch and transformers.\n"
    monkeypatch.setenv("LOCAL_RANK", "1")
    start._answer("search")
    assert capsys.readouterr().out == ""
