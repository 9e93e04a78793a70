"""Pruning-policy search for language models."""

import os
from typing import Any

# Threads that wait for each other should sleep, not spin: spinning gains nothing measurable on an
# idle machine and made labels five times slower beside another busy process.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> Any:
    """`ppf.load_agent`, imported when it is asked for."""
    if name == "load_agent":
        from ppf.agents.ratio_agent import load_agent

        return load_agent
    raise AttributeError(f"module 'ppf' has no attribute '{name}'")
