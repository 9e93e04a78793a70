"""Time of what a search prepares before its first label, by routine, in units of one product.

    python benchmarks/preparation.py [--hidden 1536] [--ffn 8960] [--heads 12] [--groups 2]
        [--layers 2] [--vocabulary 151936] [HYDRA OVERRIDES]

Prepares a Llama of this shape with random weights from an empty folder, and computes its expected
losses. The weights are made before. The unit is a float32 product of two square matrices as wide as
the FFN, timed before and after. GFLOP/s count the operations that a routine needs at least:
triangles instead of whole symmetric or triangular matrices.
"""

import argparse
import json
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from ppf.labels.context import prepare
from ppf.llm import load
from ppf.pruning import calibration, observed
from ppf.pruning.compensation import LeastSquares
from ppf.pruning.signatures import recorded
from ppf.report.tables import Table, print_table
from ppf.stages.about import version

ROUTINES: dict[str, tuple[Any, str]] = {
    "moments": (observed, "layer_moments"),
    "traits": (observed, "layer_traits"),
    "spectra": (observed, "layer_exponent"),
    "order": (observed, "score_coupling"),
    "bank": (LeastSquares, "levels"),
    "expected losses": (calibration, "sensitivity"),
}


def product(side: int) -> float:
    """Seconds of a float32 product, the shortest of three."""
    matrix, times = torch.rand(side, side), []
    for _ in range(3):
        start = time.perf_counter()
        _ = matrix @ matrix
        times.append(time.perf_counter() - start)
    return min(times)


def timed(function: Callable, seconds: Counter[str], name: str) -> Callable:
    """The function, whose time is added up."""

    @wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            seconds[name] += time.perf_counter() - start

    return call


def operations(shape: argparse.Namespace, tokens: int) -> dict[str, float]:
    """Floating-point operations a layer of the routines with matrix products."""
    h, n = shape.hidden, shape.ffn
    weights = 2 * h * h * (1 + shape.groups / shape.heads) + 3 * h * n
    vocabulary = h * shape.vocabulary / shape.layers
    cubes, squares = n**3 + h**3, n * n + h * h
    return {
        "moments": tokens * (2 * weights + squares),
        "order": 4 / 3 * cubes + h * squares,
        "bank": 2 / 3 * cubes + 3 * h * squares,
        "expected losses": tokens / 4 * (6 * (weights + vocabulary) + squares + 4 * h * (n + h)),
    }


def main() -> None:
    """Prints a table and, last, one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    sizes = {"hidden": 1536, "ffn": 8960, "heads": 12, "groups": 2, "layers": 2}
    for name, value in (sizes | {"vocabulary": 151936}).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("overrides", nargs="*", help="Hydra overrides")
    shape = parser.parse_intermixed_args()
    keys = {
        "hidden_size": shape.hidden,
        "intermediate_size": shape.ffn,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.groups,
        "num_hidden_layers": shape.layers,
        "vocab_size": shape.vocabulary,
        "initializer_range": 0.02,
    }
    seconds = Counter[str]()
    for name, (place, attribute) in ROUTINES.items():
        setattr(place, attribute, timed(getattr(place, attribute), seconds, name))
    before = product(shape.ffn)
    with tempfile.TemporaryDirectory() as folder:
        given = [f"model.source.config.{key}={value}" for key, value in keys.items()]
        places = [f"paths.{name}={folder}/{name}" for name in ("artefacts", "run")]
        with initialize_config_module("ppf.conf", version_base="1.3"):
            given = ["model=tiny", "model.source.name=wide", "model.dtype=auto", *given, *places]
            cfg = compose("search", [*given, *shape.overrides])
        fabric = instantiate(cfg.fabric)
        load(recorded(cfg, fabric.device).model, cfg.paths.cache, device=fabric.device)
        start = time.perf_counter()
        context = prepare(cfg, fabric)
        context.calibration.expected_losses()
        whole = time.perf_counter() - start
        for weights in Path(cfg.paths.cache).glob("wide-*"):
            shutil.rmtree(weights)
        disk = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    one = min(before, product(shape.ffn))
    counts = operations(shape, int(context.calibration.windows.numel()))
    rest = whole - seconds.total()
    rows = [
        {
            "routine": name,
            "seconds a layer": taken / shape.layers,
            "products a layer": taken / shape.layers / one,
            "GFLOP/s": counts[name] / (taken / shape.layers) / 1e9 if name in counts else None,
        }
        for name, taken in {**seconds, "loading and files": rest, "whole": whole}.items()
    ]
    rows.append(
        {
            "routine": "one product",
            "seconds a layer": one,
            "products a layer": 1.0,
            "GFLOP/s": 2 * shape.ffn**3 / one / 1e9,
        }
    )
    print_table(Table(rows, dict.fromkeys(list(rows[0])[1:], "{:.1f}".format)))
    print(json.dumps({"version": version(), "shape": vars(shape), "disk": disk, "rows": rows}))


if __name__ == "__main__":
    main()
