"""summary.json of a small search, as a search writes it."""

import math
from typing import Any

from ppf.evaluation import LogPerplexity


def row(policy: str, ratio: float, nll: float | None, **more: Any) -> dict[str, Any]:
    """A policy; `predicted`: mean and standard deviation."""
    found: dict[str, Any] = {"policy": policy, "ratio": ratio, "parameters": 9}
    if nll is not None:
        found["measured"] = LogPerplexity(nll).record()
    if predicted := more.pop("predicted", None):
        found["predicted"] = LogPerplexity(*predicted).record()
    if policy in ("uniform", "PPF"):
        shares = {"0.mlp": 0.75, "1.mlp": 0.5}
        found |= {"share": shares, "kept": {site: int(4 * s) for site, s in shares.items()}}
    return found | more


def summary(**more: Any) -> dict[str, Any]:
    """A search at one ratio; `more` replaces keys."""
    uniform = row("uniform", 0.375, 3.2, predicted=(3.3, 0.05))
    found = row("PPF", 0.375, 3.0, predicted=(3.1, 0.05))
    scores = {"kendall": 0.876, "coverage": 0.5, "policies": 20, "intervals": 20}
    return {
        "title": "tiny <at> ratio 0.3",
        "command": "python search.py model=tiny",
        "machine": {"PPF": "0.1.0"},
        "mode": "static",
        "method": "PPF (ppo)",
        "model": "tiny",
        "asked": [0.3],
        "settings": {
            "text": "a text",
            "labelling part": "8 windows of 64 tokens",
            "selection part": "16 other windows of the same documents",
            "compensation": "least_squares",
            "seed": 0,
        },
        "results": [row("dense", 0.0, 2.5), uniform, found],
        "candidates": [found, uniform, row("candidate 3", 0.375, 3.4, predicted=(3.3, 0.02))],
        "labels": [[0.2, 3.2], [0.4, math.log(1e6)], [0.3, None]],
        "history": [{"step": 0, "reward": 0.1, "round": 1}, {"step": 1, "reward": 0.2, "round": 2}],
        "predictor": {
            "predicted": [3.0, 3.5],
            "std": [0.1, 0.1],
            "measured": [3.1, 3.4],
            "ratio": [0.1, 0.5],
            "scores": scores,
        },
        "proposals": {},
        "units": {"0.mlp": 4, "1.mlp": 4},
        "seconds": {"collect": 65.0, "search": 3.0},
        "evaluations": 12,
        "token_passes": 6144,
        "signatures": {"labels": "0123456789ab"},
        "next_commands": {"Measure it": "python evaluate.py policy=outputs/run/policy.json"},
    } | more
