"""Commands are told as a user can type them, in the repository and from an installed package."""

import sys

import pytest

from ppf.commands import invocation
from tests.test_configs import STAGES, composed


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
