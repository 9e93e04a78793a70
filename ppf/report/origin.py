"""Where a report comes from: the command, the program and the machine."""

import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

import ppf
from ppf.commands import invocation
from ppf.conf import DEFAULT_TEXT, OF_SOURCES, options, read_option
from ppf.overrides import written


def origin(name: str) -> dict[str, Any]:
    """Command, program and machine of this run, as every summary.json has them.

    Args:
        name: of the command, as in "search".
    """
    return {"command": command_line(name), "version": version(), "machine": machine()}


def command_line(name: str) -> str:
    """The command that repeats this run: one job of a multirun, or a call from Python.

    Args:
        name: of the command, as in "search".
    """
    if not HydraConfig.initialized():
        return f"ppf.{name}(...), called from Python"
    return invocation(name, *_config_folders(), *map(_of_this_job, task_overrides()))


def _of_this_job(word: str) -> str:
    """An override in which Hydra's own values, such as ${hydra:job.num}, are those of this job."""
    config: Any = HydraConfig.get()
    named = r"\$\\?\{hydra\\?:([\w.]+)\\?\}"
    return re.sub(named, lambda found: str(OmegaConf.select(config, found[1])), word)


def command_with(name: str, changed: Mapping[str, str | None]) -> str:
    """The command of this run with other options.

    Args:
        name: of the command.
        changed: option or section → value, as in {"ratio": "0.3"}; None: without it. A section
            stands for all that begins with it, as "predictor" for predictor.steps and
            predictor/encoder.
    """
    given = [f"{option}={value}" for option, value in changed.items() if value is not None]
    if not HydraConfig.initialized():
        return f"ppf.{name}(...), called from Python with {' '.join(given)}"
    options = [word.lstrip("+~").partition("=")[0] for word in task_overrides()]
    kept = [
        word
        for word, option in zip(task_overrides(), options, strict=True)
        if option not in changed and re.split(r"[./]", option)[0] not in changed
    ]
    return invocation(name, *_config_folders(), *kept, *given)


def _config_folders() -> list[str]:
    """The flags of the command line that name folders of configs."""
    sources = HydraConfig.get().runtime.config_sources
    paths = [source.path for source in sources if source.provider == "command-line"]
    return [word for path in paths for word in ("--config-dir", path)]


def next_command(name: str, *options: str, overrides: Sequence[str] | None = None) -> str:
    """A command that reads a run's results, with the overrides that it needs too.

    Args:
        overrides: of the run; None: of this one.
    """
    given = task_overrides() if overrides is None else overrides
    return invocation(name, *options, *carried(given))


def gguf_command(policy: str) -> dict[str, str]:
    """The next command for a policy that rounds weights.

    Args:
        policy: the override that names its file.
    """
    given = (policy, "out=gguf", "export=gguf", "export.type=q8_0")
    return {"Write a file for llama.cpp": next_command("prune", *given)}


def carried(overrides: Sequence[str]) -> list[str]:
    """The overrides of a run that every command needs that reads its results."""
    return [word for word in overrides if word.startswith(_CARRIED)]


def carried_text(text: DictConfig) -> list[str]:
    """The overrides that give recovery the text of this run, without its numbers of windows.

    They are compared with the option's file, since a config of the user's own may have set them,
    such as an experiment. An option of the user's own is written out, compared with the default.
    """
    if not HydraConfig.initialized():
        return []
    choice = HydraConfig.get().runtime.choices.get("text")
    if choice not in options("text"):
        choice = DEFAULT_TEXT
    given = [] if choice == DEFAULT_TEXT else [f"text={choice}"]
    option = read_option("text", choice)
    known = [*written(option, "text.")]
    keys = {word.partition("=")[0] for word in known}
    unread = ("text.windows.", *(OF_SOURCES if text.path else ()))
    for word in written(text, "text."):
        if word not in known and not word.startswith(unread):
            given.append(word if word.partition("=")[0] in keys else f"+{word}")
    missing = _missing(option, text, "text.")
    return given + [f"~{key}" for key in missing if not f"{key}.".startswith(unread)]


def _missing(known: Mapping[Any, Any], given: Mapping[Any, Any], prefix: str) -> Iterator[str]:
    """Keys and sections of `known` that `given` lacks."""
    for key, value in known.items():
        if key not in given:
            yield f"{prefix}{key}"
        elif isinstance(value, Mapping) and isinstance(given[key], Mapping):
            yield from _missing(value, given[key], f"{prefix}{key}.")


_CARRIED = ("paths.outputs=", "paths.artefacts=", "paths.cache=", "trust_targets=", "bank.max_gib=")


def task_overrides() -> list[str]:
    """Overrides of the command line; none if Python code started the run."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def machine() -> dict[str, str]:
    """Versions and hardware, by name."""
    found = {
        "PPF": version(),
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "transformers": transformers.__version__,
        "System": platform.platform(terse=True),
        "Processor": _processor(),
        "Cores": f"{os.cpu_count()}; PyTorch uses {torch.get_num_threads()}",
    }
    if torch.cuda.is_initialized():  # this process has used it
        found["GPU"] = torch.cuda.get_device_name()
    return found


@cache
def version() -> str:
    """PPF's version, and the last commit of its code if that lies in a repository."""
    command = ["git", "-C", str(Path(ppf.__file__).parent), "log", "-1", "--format=%h", "--", "."]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return ppf.__version__
    commit = done.stdout.strip()
    return f"{ppf.__version__}, commit {commit}" if commit else ppf.__version__


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    named = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
