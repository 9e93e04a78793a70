"""Pruning-policy search for language models."""

import importlib
import os
from typing import Any

# Threads that wait should soon sleep: spinning on made labels five times slower beside
# another busy process; some microseconds of it make them 8 % faster on an idle machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def __getattr__(name: str) -> Any:
    """`ppf.load_agent` and `ppf.runtime`, imported when they are asked for."""
    if name == "load_agent":
        return importlib.import_module("ppf.agents.ratio_agent").load_agent
    if name == "runtime":
        return importlib.import_module("ppf.runtime")
    raise AttributeError(f"module 'ppf' has no attribute '{name}'")
