"""What a report says about its run: command, program, machine, and what to do next."""

import os
import platform
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from hydra.core.hydra_config import HydraConfig

import ppf
from ppf.commands import invocation
from ppf.conf import DEFAULT_TEXT

_CARRIED = ("paths.outputs=", "paths.artefacts=", "paths.cache=", "trust_targets=", "bank.max_gib=")


def about(name: str) -> dict[str, Any]:
    """Command, program and machine of a run of the command `name`, for its summary.json."""
    return {"command": command_line(name), "version": version(), "machine": machine()}


def task_overrides() -> list[str]:
    """Overrides of the command line; none if Python code started the run."""
    return list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []


def command_line(name: str) -> str:
    """The command that repeats this run: one job of a multirun, or a call from Python."""
    if not HydraConfig.initialized():
        return f"ppf.{name}(...), called from Python"
    sources = HydraConfig.get().runtime.config_sources
    paths = [source.path for source in sources if source.provider == "command-line"]
    folders = [word for path in paths for word in ("--config-dir", path)]
    return invocation(name, *folders, *task_overrides())


def next_command(name: str, *options: str) -> str:
    """A command that reads this run's results, with the overrides that it needs too."""
    return invocation(name, *options, *(w for w in task_overrides() if w.startswith(_CARRIED)))


def carried_text() -> list[str]:
    """The overrides that give recovery the text of this run, without its numbers of windows."""
    if not HydraConfig.initialized():
        return []
    choice = HydraConfig.get().runtime.choices.get("text", DEFAULT_TEXT)
    own = [] if choice == DEFAULT_TEXT else [f"text={choice}"]
    words = [word for word in task_overrides() if word.lstrip("+~").startswith("text.")]
    return own + [word for word in words if not word.startswith("text.windows")]


def machine() -> dict[str, str]:
    """Versions and hardware, by name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    named = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    found = {
        "PPF": version(),
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "transformers": transformers.__version__,
        "System": platform.platform(terse=True),
        "Processor": named[0] if named else platform.processor(),
        "Cores": f"{os.cpu_count()}; PyTorch uses {torch.get_num_threads()}",
    }
    if torch.cuda.is_initialized():  # this process has used it
        found["GPU"] = torch.cuda.get_device_name()
    return found


@cache
def version() -> str:
    """PPF's version, and the last commit of its code if that lies in a repository."""
    command = ["git", "-C", str(Path(ppf.__file__).parent), "log", "-1", "--format=%h", "--", "."]
    with suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
        if commit := done.stdout.strip():
            return f"{ppf.__version__}, commit {commit}"
    return ppf.__version__
