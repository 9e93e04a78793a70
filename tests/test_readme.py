"""What README and docs tell people to type exists; tests/cli runs the chain itself."""

import re
import shlex
from pathlib import Path

import pytest

from tests.composing import command_config

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *ROOT.glob("experiments/**/README.md")]
BLOCKS = [
    block
    for page in PAGES
    for block in re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
]
LINES = [
    line.split(" #")[0].strip()
    for block in BLOCKS
    for line in block.replace("\\\n", " ").splitlines()
]
# Also those that srun, torchrun or Fabric starts; tests/test_docs.py runs those with --config-dir.
STARTED = re.compile(r"^(?:(?:srun|torchrun|fabric run|python)\b.* )?(?:python )?(\w+\.py)\b(.*)$")
COMMANDS = sorted(
    {f"python {found[1]}{found[2]}" for line in LINES if (found := STARTED.match(line))}
)
TARGETS = sorted({line.split()[1] for line in LINES if line.startswith("make ")})
CHANGING = {"experiment", "hparams_search", "debug", "mode"}  # their options change other groups
Overrides = dict[str, str]  # by key


def joined() -> list[tuple[str, Overrides]]:
    """Scripts with overrides; commands are joined if they choose no two options of a group.

    Each composition takes a quarter of a second.
    """
    found: list[tuple[str, Overrides]] = []
    for command in COMMANDS:
        _, script, *arguments = shlex.split(command)
        given = [argument for argument in arguments if argument != "-m"]
        words = [word if {*"[{"} & {*word} else word.split(",")[0] for word in given]
        new = {word.split("=")[0]: word for word in words}
        for other, known in found:
            if other == script and fit(known, new):
                known |= new
                break
        else:
            found.append((script, new))
    return found


def fit(known: Overrides, new: Overrides) -> bool:
    """Whether both change other groups alike, and choose no two options of a group."""
    if any(known.get(group) != new.get(group) for group in CHANGING):
        return False
    groups = [key for key in known.keys() & new.keys() if (ROOT / "ppf" / "conf" / key).is_dir()]
    return all(known[group] == new[group] for group in groups)


@pytest.mark.slow
def test_every_command_composes() -> None:
    for script, overrides in joined():
        assert (ROOT / script).is_file()
        options = [ROOT / "ppf/conf" / f"{x.replace('=', '/')}.yaml" for x in overrides.values()]
        if len(options) == 1 and options[0].is_file():
            continue  # tests/test_configs.py composes it
        assert command_config(script.removesuffix(".py"), list(overrides.values())), overrides


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in TARGETS:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
