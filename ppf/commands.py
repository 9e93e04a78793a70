"""The commands as a user types them."""

import shlex
import sys
from pathlib import Path

COMMANDS = ("collect", "train", "search", "prune", "recover", "evaluate", "serve", "compress")


def invocation(name: str, *arguments: str) -> str:
    """The line that starts a command, for a POSIX shell.

    It begins with `python NAME.py` if one of the repository's scripts runs, which an installed
    package lacks, and otherwise with `ppf-NAME`.

    Args:
        name: of the command, as in "search".
        arguments: flags and overrides.
    """
    is_script = Path(sys.argv[0]).name in [f"{command}.py" for command in COMMANDS]
    start = ["python", f"{name}.py"] if is_script else [f"ppf-{name}"]
    return shlex.join([*start, *arguments])


def python_command(code: str) -> str:
    """The command that runs a line of Python code."""
    plain = not set('"$`\\!') & set(code)  # what shells interpret between double quotes
    return f'python -c "{code}"' if plain else shlex.join(["python", "-c", code])
