"""Where a report comes from: the command, the program and the machine."""

import os
import platform
import shlex
import subprocess
from pathlib import Path

import torch
import transformers
from hydra.core.hydra_config import HydraConfig

import ppf


def command_line(name: str) -> str:
    """The command that repeats this run: one job of a multirun, or a call from Python.

    Args:
        name: of the command, as in "search".
    """
    if not HydraConfig.initialized():
        return f"ppf.{name}(...), called from Python"
    return shlex.join(["python", f"{name}.py", *HydraConfig.get().overrides.task])


def machine() -> dict[str, str]:
    """Versions and hardware, by name."""
    found = {
        "PPF": f"{ppf.__version__}{_commit()}",
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "transformers": transformers.__version__,
        "System": platform.platform(terse=True),
        "Processor": _processor(),
        "Cores": f"{os.cpu_count()}; PyTorch uses {torch.get_num_threads()}",
    }
    if torch.cuda.is_available():
        found["GPU"] = torch.cuda.get_device_name()
    return found


def _commit() -> str:
    """The last commit of the package; empty: it lies in no repository."""
    command = ["git", "-C", str(Path(ppf.__file__).parent), "log", "-1", "--format=%h", "--", "."]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return f", commit {done.stdout.strip()}" if done.stdout.strip() else ""


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    named = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
