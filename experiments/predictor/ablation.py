"""Search with the predictor against evolution on real evaluations, at equal labels and equal time.

    python experiments/predictor/ablation.py [--ratios 0.3] [--seeds 0] [HYDRA OVERRIDES]

Both start from uniform pruning under the same order, compensation and labelling text. The time of
a label is the one that its making took, whenever that was; fitting and searching are timed here,
so start with artefacts that hold no predictors.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from hydra.utils import instantiate
from lightning import Fabric
from setting import configured
from torch import Tensor

from ppf.agents import Agent
from ppf.evaluation.perplexity import mean_nll
from ppf.labels.collect import label
from ppf.labels.table import Labels
from ppf.progress import Stopwatch
from ppf.stages.acquire import acquire
from ppf.stages.collect import collect, label_store
from ppf.stages.objective import objective_of
from ppf.stages.prepare import PruningContext, prepare
from ppf.stages.search import search

sys.path.append(str(Path(__file__).parents[1] / "search"))
from evolution import evolve, label_seconds  # noqa: E402

FILE = Path(__file__).with_name("ablation.json")


def compared(context: PruningContext, labels: Labels) -> Iterator[dict[str, object]]:
    """The predictor's search, then evolution on real evaluations with as many labels, and as long.

    Its labels are those that the predictor is fitted to and those that its rounds measured.
    """
    clock = Stopwatch()
    found = search(context, labels, clock)
    used = torch.cat([labels.kept, found.measured.kept.cpu()]).unique(dim=0)
    computing = (
        clock.seconds["training the predictor"] + clock.seconds["searching on the predictor"]
    )
    labelling = label_seconds(context, used)
    best = found.measured.best
    predicted = {"predicted_nll": float(found.measured.mean[best])}
    yield (
        {"method": "predictor", "labels": len(used), "seconds": computing + labelling}
        | result(context, found.kept, float(found.measured.measured[best]))
        | predicted
    )
    agent: Agent = instantiate(context.cfg.agent)
    objective = objective_of(context, found.trained, context.cfg.ratio, agent)
    objective = replace(objective, trust_region=1.0)
    each = label_seconds(context, found.measured.kept.cpu()) / len(found.measured.kept)
    evaluations = {"labels": len(used), "time": round((computing + labelling) / each)}

    def measure(kept: Tensor) -> Tensor:
        return label(label_store(context), context.labeller, kept, "real search").nll

    for equal, count in evaluations.items():
        real = evolve(objective, measure, evaluations=count, seed=context.cfg.seed)
        spent = {"labels": len(real.measured), "seconds": label_seconds(context, real.measured)}
        method = {"method": f"real evaluations, equal {equal}"}
        yield method | spent | result(context, real.kept, real.nll)


def result(context: PruningContext, kept: list[int], nll: float) -> dict[str, object]:
    """A policy's loss on the labelling and on the test part, nats per token."""
    windows = context.text.tokens("test", context.lm.tokenizer)
    with context.pruner.at(kept) as model:
        test = mean_nll(model, windows, batch=context.cfg.labels.batch)
    return {"labelling_nll": nll, "test_nll": test}


def main() -> None:
    """Writes ablation.json after each ratio and seed; rows that it has are skipped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ratios", default="0.3")
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--results", type=Path, default=FILE)
    options, overrides = parser.parse_known_args()
    rows = json.loads(options.results.read_text()) if options.results.is_file() else []
    done = {(row["ratio"], row["seed"]) for row in rows}
    context = prepare(configured(*overrides), Fabric(accelerator="cpu", devices=1))
    for seed in map(int, options.seeds.split(",")):
        for ratio in map(float, options.ratios.split(",")):
            if (ratio, seed) in done:
                continue
            given = configured(*overrides, f"ratio={ratio}", f"seed={seed}")
            here = replace(context, cfg=given)
            for row in compared(here, acquire(here, collect(here))):
                rows.append({"ratio": ratio, "seed": seed, **row})
                print(rows[-1])
            options.results.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
