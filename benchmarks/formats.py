"""Size, perplexity and speed of a pruned model in each number format of GGUF.

    python benchmarks/formats.py FOLDER [--windows 4] [--importance 32] [--types q5_0 q4_0]

FOLDER is one that prune.py or recover.py wrote; the dense model that it came from is measured too.
Each file is scored in llama.cpp, and the same rounded weights in transformers, in float32, on
windows of the test part. The windows are those of the text that the policy was searched on. Speed
is that of decoding in llama.cpp, after a prompt of 512 tokens. With an importance matrix, only
llama.cpp is measured.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from llama_cpp import LlamaCpp

from ppf.evaluation.perplexity import mean_nll
from ppf.export import Pruned, k_quants, load_folder, read_pruned, round_weights
from ppf.export.gguf import GGUF
from ppf.llm import load
from ppf.policy_file import policy_config, read_policy
from ppf.text.parts import build_text
from ppf.text.windows import evenly

TYPES = ("f16", "q8_0", "q6_k", "q5_k_m", "q5_0", "q4_k_m", "q4_0")


def rows(folder: Path, cfg: Any, given: Any, out: Path) -> Iterator[dict[str, Any]]:
    """One row for each model and number format, with perplexities in both programs."""
    record = read_policy(folder / "policy.json", ())
    config = policy_config(record, cfg)
    config.model.dtype = "float32"
    dense, run = load(config.model, cfg.paths.cache), LlamaCpp(Path(cfg.paths.cache))
    # K-quants come from the same build of llama.cpp, so llama-cpp-python is not needed.
    k_quants.library = lambda: next(run.libraries.glob("*ggml-base.*"))
    text = build_text(config.text, cfg.paths.cache)
    windows = evenly(text.tokens("test", dense.tokenizer), given.windows)
    calibration = partial(text.tokens, "calibration", dense.tokenizer)
    blocks = [coupling.block for coupling in dense.couplings]
    for name, parts in (
        (
            "dense",
            Pruned(dense, dense.couplings, blocks, [(c.atoms, c.queries) for c in dense.couplings]),
        ),
        ("pruned", read_pruned(folder, torch.float32)),
    ):
        for kind in given.types:
            exporter = GGUF(kind, given.importance).weighted(parts, calibration)
            file = exporter.write(parts, out, record)
            timed = {"file": str(file), "prompt": "The " * 512, "steps": 128}
            found, time = run([{"file": str(file), "windows": windows.tolist()}, timed])
            nll = math.nan
            if not given.importance:
                if name == "dense":
                    model = load(config.model, cfg.paths.cache).model
                else:
                    model = load_folder(folder, torch.float32)[0].eval()
                round_weights(model, kind)
                nll = mean_nll(model, windows, batch=1)
            yield {
                "model": name,
                "type": kind,
                "mib": file.stat().st_size / 2**20,
                "llama.cpp": math.exp(found["nll"]),
                "transformers": math.exp(nll),
                "tokens/s": 1 / time["seconds"],
            }


def main() -> None:
    """Prints the table and, as the last line, its rows as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--windows", type=int, default=4, help="windows of the test part")
    parser.add_argument("--importance", type=int, default=0, help="windows of calibration text")
    parser.add_argument("--types", nargs="+", default=TYPES)
    given = parser.parse_args()
    with initialize_config_module("ppf.conf", version_base="1.3"):
        cfg = compose("prune", [f"paths.run={tempfile.gettempdir()}"])
    print("| model | type | MiB | perplexity, llama.cpp | perplexity, transformers | tokens/s |")
    print("|---|---|---|---|---|---|")
    found = []
    with tempfile.TemporaryDirectory() as out:
        for row in rows(given.folder, cfg, given, Path(out)):
            found.append(row)
            cells = [f"{row['mib']:.1f}", f"{row['llama.cpp']:.2f}", f"{row['transformers']:.2f}"]
            cells += [f"{row['tokens/s']:.0f}"]
            print(f"| {' | '.join([row['model'], row['type'], *cells])} |", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
