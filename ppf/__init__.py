"""Pruning-policy search for language models."""

import os

# Threads that wait for each other should sleep, not spin: spinning gains nothing measurable on an
# idle machine and made labels five times slower beside another busy process.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
