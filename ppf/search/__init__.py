"""Runs agents on any number of processes, and measures their policies on the real model."""

from ppf.search.runner import run_search
from ppf.search.trust_region import TrustRegion, with_neighbours
from ppf.search.verify import Verification, verify

__all__ = ["Verification", "TrustRegion", "run_search", "verify", "with_neighbours"]
