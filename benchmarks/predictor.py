"""Predictor: policies one at a time and in batches, against one real evaluation.

A real evaluation is a label, which the predictor replaces in a search, or the whole test part.
Everything is timed in one run, on all threads that torch takes for the real evaluation and on
one thread for the predictor, as in a search. More labels make a Gaussian process slower:

    python benchmarks/predictor.py [HYDRA OVERRIDES, as for train.py]
"""

import json
import sys
import tempfile
import time

import torch
from hydra import compose, initialize_config_module
from lightning import Fabric
from torch import Tensor

from ppf.conf import plain
from ppf.evaluation.perplexity import mean_nll
from ppf.labels.context import PruningContext, prepare
from ppf.predictor.module import PredictorModule
from ppf.space import uniform
from ppf.stages.collect import collect
from ppf.stages.fit import fitted
from ppf.threads import cpu_threads

BATCHES = (1, 64, 4096)
RATIO = 0.3
SECONDS = 2.0  # of timing for each batch size


def real_evaluations(context: PruningContext) -> dict[str, float]:
    """Seconds that the uniform policy takes, as a label and on the whole test part."""
    windows = context.text.tokens("test", context.model.lm.tokenizer)
    kept = uniform(context.model.space, torch.tensor([RATIO]))[0].tolist()
    context.labelling.labeller.score(context.model.space.dense.tolist())  # warms up
    start = time.perf_counter()
    context.labelling.labeller.score(kept)
    label = time.perf_counter() - start
    with context.model.pruner.at(kept) as model:
        start = time.perf_counter()
        mean_nll(model, windows, batch=context.labelling.settings.batch)
        return {"label": label, "test part": time.perf_counter() - start}


def policies_per_second(predictor: PredictorModule, kept: Tensor) -> float:
    """Of batches of this size, one after another; the first one warms up."""
    predictor.predict(kept).mean.sum().item()
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        predictor.predict(kept).mean.sum().item()  # waits for the device
        done += len(kept)
    return done / (time.perf_counter() - start)


def main() -> None:
    """Prints a table and, last, one line of JSON."""
    with initialize_config_module("ppf.conf", version_base="1.3"):
        run = f"paths.run={tempfile.mkdtemp()}"
        cfg = compose("train", [run, *sys.argv[1:]])
    fabric = Fabric(accelerator="cpu", devices=1)
    context = prepare(cfg, fabric)
    space, config = context.model.space, plain(cfg.predictor)
    predictor = fitted(cfg, fabric, context, None, collect(cfg, context)).predictor

    seconds = real_evaluations(context)
    for part, spent in seconds.items():
        print(f"one real evaluation, {part}: {spent:.1f} s")
    rates: dict[str, dict[int, float]] = {}
    for device in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        predictor.to(torch.device(device))
        rates[device] = {}
        for batch in BATCHES:
            kept = (torch.rand(batch, len(space)) * (space.units + 1)).long().to(device)
            with cpu_threads(config.get("threads", 1)):
                rates[device][batch] = policies_per_second(predictor, kept)
            print(f"{device:<5} batches of {batch:<5} {rates[device][batch]:12,.0f} policies/s")
    result = {
        "speedup_over_label": seconds["label"] * rates["cpu"][1],
        "speedup_over_test_part": seconds["test part"] * rates["cpu"][1],
        "policies_per_second": rates["cpu"][BATCHES[-1]],
        "seconds": seconds,
        "rates": rates,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
