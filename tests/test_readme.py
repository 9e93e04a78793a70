"""What README and docs tell people to type exists; tests/cli runs the chain itself."""

import re
import shlex
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *ROOT.glob("experiments/*/README.md")]
BLOCKS = [
    block
    for page in PAGES
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
]
LINES = [line.split(" #")[0].strip() for block in BLOCKS for line in block.splitlines()]
COMMANDS = sorted({line for line in LINES if re.match(r"python \w+\.py", line)})
TARGETS = sorted({line.split()[1] for line in LINES if line.startswith("make ")})


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_composes(command: str) -> None:
    _, script, *arguments = shlex.split(command)
    assert (ROOT / script).is_file()
    given = [argument for argument in arguments if argument != "-m"]
    overrides = [word if "[" in word else word.split(",")[0] for word in given]
    with initialize_config_module("ppf.conf", version_base="1.3"):
        assert compose(script.removesuffix(".py"), overrides)


@pytest.mark.parametrize("target", TARGETS)
def test_a_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_the_readme_shows_commands() -> None:
    assert len(COMMANDS) >= 5 and len(TARGETS) >= 2
