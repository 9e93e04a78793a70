"""Commands are told as a user can type them, in the repository and from an installed package."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ppf.commands import invocation
from tests.test_configs import ROOT, STAGES, composed

SCRIPT = re.compile(rf"\b({'|'.join(STAGES)})\.py\b")
LOOKS_FOR_THE_SCRIPT = "evaluation/tasks.py"


@pytest.mark.parametrize(
    ("program", "start"),
    [
        *((f"{stage}.py", "python prune.py") for stage in STAGES),
        ("/repository/search.py", "python prune.py"),
        ("/environment/bin/ppf-search", "ppf-prune"),
        ("own_script.py", "ppf-prune"),
        ("-c", "ppf-prune"),
    ],
)
def test_a_command_is_told_as_the_running_one_was_typed(
    program: str, start: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [program])
    assert invocation("prune", "policy=a b") == f"{start} 'policy=a b'"


@pytest.mark.parametrize("stage", STAGES)
def test_the_example_of_help_can_be_typed(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = composed(stage, {}).hydra.help
    for program, start in ((f"{stage}.py", f"python {stage}.py"), ("bin/x", f"ppf-{stage}")):
        monkeypatch.setattr(sys, "argv", [program])
        assert f"Example: {start} " in shown.header


def told(file: Path) -> Iterator[str]:
    """The strings of a module that are not docstrings."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in docstrings:
            yield str(node.value)


def test_no_message_names_a_script_that_an_installed_package_lacks() -> None:
    files = sorted((ROOT / "ppf").rglob("*.py"))
    found = [text for file in files if not file.match(LOOKS_FOR_THE_SCRIPT) for text in told(file)]
    assert [text for text in found if SCRIPT.search(text)] == []
