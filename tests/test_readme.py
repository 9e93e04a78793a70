"""What the README tells people to type exists; tests/cli runs the chain itself."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(
    r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
)
LINES = [line.split(" #")[0].strip() for block in BLOCKS for line in block.splitlines()]
COMMANDS = [line for line in LINES if line.startswith("python ")]
TARGETS = [line.split()[1] for line in LINES if line.startswith("make ")]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_composes(command: str) -> None:
    _, script, *arguments = shlex.split(command)
    assert (ROOT / script).is_file()
    overrides = [argument.split(",")[0] for argument in arguments if argument != "-m"]
    with initialize_config_module("ppf.conf", version_base="1.3"):
        assert compose(script.removesuffix(".py"), overrides)


@pytest.mark.parametrize("target", TARGETS)
def test_a_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_readme_shows_commands() -> None:
    assert len(COMMANDS) >= 5 and len(TARGETS) >= 2
