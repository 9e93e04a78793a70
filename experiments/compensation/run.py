"""Perplexity of uniform pruning: importance orders × compensations × ratios, on the test part.

    python experiments/compensation/run.py [--windows 16] [--ratios 0.2,0.3] [HYDRA OVERRIDES]

Every cell is measured on the same windows of the test part; rows that results.json has already are
skipped. Least squares is measured twice, the second time re-estimated front to back as `prune.py`
does.
"""

import argparse
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from hydra import compose, initialize_config_module
from lightning import Fabric

from ppf.evaluation.perplexity import evenly, mean_nll
from ppf.progress import say
from ppf.space import uniform
from ppf.stages.prepare import PruningContext, prepare
from ppf.stages.prune import can_refit, refit

FILE = Path(__file__).with_name("results.json")
IMPORTANCES = ("magnitude", "wanda", "fluctuation", "taylor", "obs")
COMPENSATIONS = ("none", "bias", "least_squares")


def cells(
    context: PruningContext, ratios: list[float], windows: int
) -> Iterator[dict[str, object]]:
    """Measured rows of one order and compensation, one-shot and sequential."""
    text = evenly(context.text.tokens("test", context.lm.tokenizer), windows)
    for ratio in ratios:
        context.pruner.apply(uniform(context.space, torch.tensor([ratio]))[0].tolist())
        for sequential in (False, True):
            if sequential:
                if context.pruner.bank.levels[0].weights is None or not can_refit(context):
                    continue
                refit(context)
            nll = mean_nll(context.lm.model, text, batch=8)
            say(
                f"ratio {ratio}, sequential {sequential}: perplexity {math.exp(nll):.2f} (measured)"
            )
            yield {"ratio": ratio, "sequential": sequential, "nll": nll, "test_ppl": math.exp(nll)}
    context.pruner.restore()


def table(rows: list[dict], ratios: list[float]) -> str:
    """Markdown: one row an order and compensation, one column a ratio."""
    lines = ["| importance | compensation | " + " | ".join(f"{r:.0%}" for r in ratios) + " |"]
    lines.append("|---" * (len(ratios) + 2) + "|")
    keys = dict.fromkeys((r["importance"], r["compensation"], r["sequential"]) for r in rows)
    for importance, compensation, sequential in keys:
        found = {
            r["ratio"]: r["test_ppl"]
            for r in rows
            if (r["importance"], r["compensation"], r["sequential"])
            == (importance, compensation, sequential)
        }
        name = compensation + (" + sequential" if sequential else "")
        numbers = [f"{found[r]:.1f}" if r in found else "" for r in ratios]
        lines.append(f"| {importance} | {name} | " + " | ".join(numbers) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measures what is missing, writes results.json after each cell and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--windows", type=int, default=16, help="of the test part, evenly spread")
    parser.add_argument("--ratios", default="0.2,0.3,0.4,0.5")
    parser.add_argument("--results", type=Path, default=FILE)
    arguments, overrides = parser.parse_known_args()
    file, ratios = arguments.results, [float(ratio) for ratio in arguments.ratios.split(",")]
    rows = json.loads(file.read_text()) if file.is_file() else []
    for importance in IMPORTANCES:
        for compensation in COMPENSATIONS:
            name = {"importance": importance, "compensation": compensation}
            done = [r["ratio"] for r in rows if name.items() <= r.items()]
            missing = [ratio for ratio in ratios if ratio not in done]
            if not missing:
                continue
            say(f"{importance}, {compensation}")
            choices = [f"{key}={value}" for key, value in name.items()]
            with initialize_config_module("ppf.conf", version_base="1.3"):
                run = f"paths.run={tempfile.mkdtemp()}"
                cfg = compose("collect", [*choices, run, *overrides])
            context = prepare(cfg, Fabric(accelerator="cpu", devices=1))
            for cell in cells(context, missing, arguments.windows):
                rows.append(name | cell)
            file.write_text(json.dumps(rows, indent=1) + "\n")
    print(table(rows, ratios))


if __name__ == "__main__":
    main()
