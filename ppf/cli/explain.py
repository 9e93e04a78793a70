"""Errors that a user can fix, each as one sentence."""

import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from ppf.arguments import unknown_key
from ppf.artefacts import disk_failure
from ppf.conf import command_of, options
from ppf.errors import PPFError, out_of_memory

Explain = Callable[[BaseException], str | None]
"""The sentence for an error; None: a user cannot fix it."""
_SMALLER_LABELS = "a smaller labels.batch, a shorter text.window, or a smaller model"
_SMALLER = {
    "prune": "dtype=bfloat16, bank.max_gib=0.0, or (with policy=) sequential=false",
    "evaluate": "dtype=bfloat16, a smaller batch, or a shorter window",
    "recover": (
        "a smaller recovery.micro_batch, with tune=blockwise a smaller tune.blockwise.windows, or a"
        " shorter text.window"
    ),
    "serve": "dtype=bfloat16, a smaller bank.max_gib, or a smaller limits.sequences",
}
"""Command → keys that lower its memory."""
_GIVEN = {
    "model": "; for a Hugging Face folder give model=local model.path=FOLDER",
    "text": "; for a file give text.path=FILE",
}
"""Option group → how to give what is no option."""
_SEVERAL_VALUES = re.compile(r"Ambiguous value for argument '(.+)'")
_NO_GROUP = re.compile(r"Could not override '(.+)'\. No match in the defaults list")


@contextmanager
def errors_explained(explain: Explain, *, with_traceback: bool = False) -> Iterator[None]:
    """Ends the process with exit code 1 after any error; prints `Error: ...` if it has a sentence.

    Errors without one are shown with their traceback.

    Args:
        with_traceback: show it for all errors.
    """
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning's Trainer turned it
            raise error.__context__ from None
        raise
    except Exception as error:
        sentence = None if with_traceback else explain(error)
        if isinstance(error, BrokenPipeError) and _reader_left():
            pass
        elif sentence is None:
            traceback.print_exc()
        else:
            known = sys.modules.get("lightning.fabric.utilities.rank_zero")  # slow to import
            rank = getattr(getattr(known, "rank_zero_only", None), "rank", 0)
            print(f"Error{f' on rank {rank}' if rank else ''}: {sentence}", file=sys.stderr)
        _leave_other_ranks()
        sys.exit(1)


def _reader_left() -> bool:
    """Whether nobody reads stdout any more, as with `--help | head`; what is left is then lost."""
    try:
        print(flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return True
    return False


def _leave_other_ranks() -> None:
    """Ends this process at once if others wait for it.

    At a normal exit, Lightning closes NCCL's connections, which waits for other ranks for hours.
    """
    processes: Any = sys.modules.get("ppf.processes")  # slow to import; without it there are none
    if processes and not processes.is_alone():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def explain_run(command: str) -> Explain:
    """Sentences for errors of a running command."""

    def explain(error: BaseException) -> str | None:
        if isinstance(error, PPFError):
            return str(error)
        if isinstance(error, MissingMandatoryValue):
            key = _full_key(error)
            return f"{key} is missing: give it as {key}=VALUE."
        if isinstance(error, InstantiationException):
            return refusal(error)
        if isinstance(error, OmegaConfBaseException):
            return f"{_full_key(error)}: {first_line(error)}."
        if out_of_memory(error):
            return f"out of memory: give {_SMALLER.get(command, _SMALLER_LABELS)}."
        return disk_failure(error)

    return explain


def explain_config(command: str, overrides: Sequence[str]) -> Explain:
    """Sentences for errors of Hydra while it composes a command's config."""

    def explain(error: BaseException) -> str | None:
        if isinstance(error, MissingConfigException) and error.options:
            missing = str(error.missing_cfg_file)
            named = (name for name in ("experiment", *_GIVEN) if missing.startswith(f"{name}/"))
            group = next(named, missing.rpartition("/")[0])
            option, known = missing.removeprefix(f"{group}/"), error.options
            if group == "trainer" and option in options("fabric"):
                return (
                    f"trainer={option} does not exist, since the predictor is trained on one"
                    f" device: give fabric={option}, which divides labelling and search."
                )
            if group == "experiment":  # Hydra does not list sub-folders
                known = [x for x in options(group) if command_of(group, x) in (None, command)]
            given = _GIVEN.get(group, "")
            return f"{group}={option} is unknown: give one of {', '.join(known)}{given}."
        if isinstance(error, OverrideParseException):
            given = _GIVEN.get(str(error.override).partition("=")[0], "")
            return f"{error.override} is not an override: give KEY=VALUE, as in seed=1{given}."
        if found := _SEVERAL_VALUES.match(str(error)):
            key = found[1].partition("=")[0]
            return f"{key} has several values: give -m for one job each, or {key}=[...] for a list."
        if found := _NO_GROUP.match(str(error)):
            return f"{command} has no option group {found[1]}: --help lists those that it has."
        if isinstance(error, ConfigCompositionException) and error.__cause__:
            keys = _full_key(error.__cause__).split(".")
            of_text = any(word.startswith("text=") for word in overrides)
            if keys[0] == "text" and command == "evaluate" and not of_text:
                return "keys of text= need a text: give text=wikipedia_sample (or another) too."
            return unknown_key(keys, _known_keys(command, overrides, keys))
        if isinstance(error, HydraException | ValueError | TypeError):
            return f"{first_line(error)}."
        if isinstance(error, OSError) and error.filename:
            return disk_failure(error, Path(error.filename))
        return explain_run(command)(error)

    return explain


def refusal(error: InstantiationException, key: str | None = None) -> str:
    """The sentence that says why a class or function refuses its arguments.

    Args:
        key: of its part of the config; None: as the error says.
    """
    if isinstance(error.__cause__, PPFError):
        return str(error.__cause__)
    name = key or _full_key(error)
    return f"{name} does not work with these settings ({first_line(error.__cause__ or error)})."


def first_line(error: BaseException) -> str:
    """The first line of an error's message, without a full stop."""
    return (str(error).strip().split("\n")[0] or type(error).__name__).rstrip(".!")


def _full_key(error: BaseException) -> str:
    """The key that Hydra or OmegaConf names in an error."""
    return str(error).rpartition("full_key: ")[2].split("\n")[0]


def _known_keys(command: str, overrides: Sequence[str], keys: list[str]) -> list[str]:
    """The existing keys next to a wrong one, with all other overrides applied."""
    others = [word for word in overrides if "=" in word and ".".join(keys) not in word]
    try:
        with initialize_config_module("ppf.conf", version_base="1.3"):
            cfg = compose(command, others)
    except Exception:  # other overrides are wrong too
        return []
    section = OmegaConf.select(cfg, ".".join(keys[:-1])) if keys[1:] else cfg
    return [str(key) for key in section] if OmegaConf.is_dict(section) else []
