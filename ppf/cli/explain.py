"""Errors of a command: one line and exit code 1."""

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from ppf.arguments import unknown_key
from ppf.artefacts import disk_failure
from ppf.conf import options
from ppf.errors import PPFError, out_of_memory


@contextmanager
def errors_told(overrides: Sequence[str] = (), *, with_traceback: bool = False) -> Iterator[None]:
    """Ends the process with exit code 1 after any error; prints `Error: ...` if a user can mend it.

    Args:
        overrides: those that Hydra composes the command's config from.
        with_traceback: show it for all errors; otherwise only for those that are bugs.
    """
    try:
        yield
    except SystemExit as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Lightning's Trainer turned it
            raise error.__context__ from None
        raise
    except BrokenPipeError:  # nobody reads the output any more, as with `--help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        told = None if with_traceback else sentence(error, overrides)
        if told is None:
            traceback.print_exc()
        else:
            print(f"Error: {told}", file=sys.stderr)
        processes: Any = sys.modules.get("ppf.processes")  # None: torch is not imported yet
        if processes and not processes.is_alone():
            # At a normal exit, Lightning closes NCCL's connections, which waits for other ranks.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(1)
        sys.exit(1)


_OWN_PATH = {"model": ", or model.path=FOLDER", "text": ", or text.path=FILE"}


def sentence(error: BaseException, overrides: Sequence[str] = ()) -> str | None:
    """One line on an error that a user can mend; None: it is a bug."""
    if isinstance(error, InstantiationException):
        return refusal(error)
    if isinstance(error, MissingConfigException) and error.options:
        missing = str(error.missing_cfg_file)
        given = next((word for word in overrides if word.replace("=", "/", 1) == missing), missing)
        known = options("experiment") if missing.startswith("experiment/") else error.options
        own = _OWN_PATH.get(missing.partition("/")[0], "")
        return f"{given} is unknown: give one of {', '.join(known)}{own}."
    cause = error.__cause__
    if isinstance(error, ConfigCompositionException) and isinstance(cause, OmegaConfBaseException):
        keys, section = str(cause.full_key).split("."), cause.parent_node
        near = [str(key) for key in section] if isinstance(section, DictConfig) else []
        if keys[-1] not in near:
            return unknown_key(keys, near)
    if isinstance(error, OverrideParseException) and error.override.count("=") > 1:
        key, _, value = error.override.partition("=")
        return f"{error.override} cannot be read: quote the value, as in '{key}=\"{value}\"'."
    if isinstance(error, HydraException):
        return " ".join(str(error).split()).rstrip(".") + "."
    if isinstance(error, OmegaConfBaseException):
        return f"{_key(error)}: {_line(error)}."
    if out_of_memory(error):
        return (
            "out of memory: lower labels.batch (collect, train, search), recovery.micro_batch"
            " (recover), batch (evaluate), bank.max_gib or text.window, or give dtype=bfloat16."
        )
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("ppf"):
        return f"{error.name} is not installed: run `pip install 'ppf-llm[demo,serve,tasks]'`."
    return str(error) if isinstance(error, PPFError) else disk_failure(error)


def refusal(error: InstantiationException) -> str:
    """The sentence that says why a class or function refuses its arguments."""
    if isinstance(error.__cause__, PPFError):
        return str(error.__cause__)
    return f"{_key(error)} does not work with these settings ({_line(error.__cause__ or error)})."


def _line(error: BaseException) -> str:
    """The first line of an error's message, without a full stop."""
    return (str(error).strip().split("\n")[0] or type(error).__name__).rstrip(".!")


def _key(error: BaseException) -> str:
    """The key that Hydra or OmegaConf names in an error."""
    return str(error).rpartition("full_key: ")[2].split("\n")[0]
