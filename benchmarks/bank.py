"""The level bank at Llama-2-7B's shapes: one layer measured, the whole model by arithmetic.

    python benchmarks/bank.py [--hidden 4096 --ffn 11008 --heads 32 --layers 32 --multiple 64]

prints time, memory and disk of the bank as factors on disk (two a site, float32), the size of the
weights of all levels, and the time to read and multiply out one level.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from ppf.pruning.compensation import Factors, LeastSquares
from ppf.pruning.tensor_files import write_tensors

TOKENS = 2048


def gram(columns: int, generator: torch.Generator) -> Tensor:
    """Of random activations with a decaying spectrum."""
    scale = torch.linspace(1, 0.05, columns)
    x = torch.randn(TOKENS, columns, generator=generator) * scale
    return x.T @ x / TOKENS + 0.01 * torch.eye(columns)


def prepare_site(hidden: int, columns: int, units: int, folder: Path) -> dict[str, float]:
    """Solves and spills one site; seconds, GiB on disk and seconds of a level at half the width."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(hidden, columns, generator=generator) / columns**0.5
    moments = gram(columns, generator)
    widths = [columns * kept // units for kept in range(units + 1)]
    start = time.perf_counter()
    method = LeastSquares(damping=0.01, refit_damping=0.3)
    factors = method.levels(weight, moments, moments[0], widths).factors
    assert factors
    file = folder / f"{columns}.safetensors"
    blocks = {f"inverse.{i}": block[:] for i, block in enumerate(factors.inverse)}
    write_tensors(file, {"projected": factors.projected[:], **blocks})
    solved = time.perf_counter()
    stored = safe_open(file, "pt")
    slices = [stored.get_slice(name) for name in ("projected", *blocks)]
    factors = Factors(slices[0], slices[1:], widths[:-1])
    level = factors.weight(units // 2, weight.bfloat16())
    return {
        "seconds": solved - start,
        "disk_gib": file.stat().st_size / 2**30,
        "level_seconds": time.perf_counter() - solved,
        "ready_gib": sum(widths[:-1]) * hidden * level.dtype.itemsize / 2**30,
    }


def main() -> None:
    """Prints a table and, last, one line of JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    defaults = {"hidden": 4096, "ffn": 11008, "heads": 32, "layers": 32, "multiple": 64}
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    shape = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sites = {
            "attention": prepare_site(shape.hidden, shape.hidden, shape.heads, Path(folder)),
            "mlp": prepare_site(shape.hidden, shape.ffn, shape.ffn // shape.multiple, Path(folder)),
        }
    for kind, numbers in sites.items():
        print(f"{kind:<10} " + ", ".join(f"{n} {value:.2f}" for n, value in numbers.items()))
    whole = {
        name: shape.layers * sum(site[name] for site in sites.values())
        for name in ("seconds", "disk_gib", "ready_gib")
    }
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{shape.layers} layers: " + ", ".join(f"{n} {value:.1f}" for n, value in whole.items()))
    print(f"peak memory of the run {peak:.1f} GiB")
    print(json.dumps({"sites": sites, "model": whole, "peak_gib": peak}))


if __name__ == "__main__":
    main()
