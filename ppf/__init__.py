"""Pruning-policy search for language models."""

import importlib
import os
from typing import Any

# Threads that wait for each other should sleep, not spin: spinning gains nothing measurable on an
# idle machine and made labels five times slower beside another busy process.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def __getattr__(name: str) -> Any:
    """`ppf.runtime` is there without an import of its own, and costs nothing until it is used."""
    if name != "runtime":
        raise AttributeError(f"module 'ppf' has no attribute '{name}'")
    return importlib.import_module("ppf.runtime")
