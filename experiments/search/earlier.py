"""Measures policies that an earlier version found, and those of given files, on the same text.

    python experiments/search/earlier.py [POLICY.json ...]

Version 482b420 regularised the compensation towards zero, and found its policies with labels of
random policies; this repository's history has them. All policies are measured with the present
order and one-shot compensation: on the labelling part, and on the 32 of the 128 windows of the test
part that 482b420 reported. Results are kept in outputs/experiments/search/earlier.json, and are
not measured again.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import torch
from hydra import compose, initialize_config_module
from lightning import Fabric

from ppf.context.policy import by_site
from ppf.context.prepare import prepare
from ppf.evaluation.perplexity import evenly, mean_nll

OUT = Path("outputs/experiments/search/earlier.json")
SOURCE = "482b420:experiments/search/"
FILES = {"evolution, 182 evaluations": "equal.json", "dynamic, 1037 evaluations": "results.json"}
RATIOS, WINDOWS = (0.2, 0.3, 0.4, 0.5), 32


def earlier() -> dict[str, list[int]]:
    """The policies of 482b420: for each name and ratio, the units that each site keeps."""
    found = {}
    for name, file in FILES.items():
        text = subprocess.run(["git", "show", SOURCE + file], capture_output=True, check=True)
        rows = [row for row in json.loads(text.stdout) if row["agent"] == name.split(",")[0]]
        found |= {f"{name}, {row['ratio']}": row["kept"] for row in rows if row["seed"] == 0}
    return {name: kept for name, kept in found.items() if name.endswith(tuple(map(str, RATIOS)))}


def main(files: list[str]) -> None:
    """Measures all policies and prints their perplexities."""
    with initialize_config_module("ppf.conf", version_base="1.3"):
        config = compose("search", ["logger=none", "paths.run=."])
    context = prepare(config, Fabric(accelerator="cpu", devices=1))
    sites = by_site(context.model.space, [0] * len(context.model.space))
    policies = earlier()
    for file in files:
        kept = json.loads(Path(file).read_text(encoding="utf-8"))["kept"]
        policies[file] = [kept[site] for site in sites]
    windows = evenly(context.text.tokens("test", context.model.lm.tokenizer), WINDOWS)
    results = json.loads(OUT.read_text(encoding="utf-8")) if OUT.exists() else {}
    for name, kept in policies.items():
        if name not in results:
            labelling = float(context.labelling.measure(torch.tensor([kept]), "earlier").nll[0])
            with context.model.at(kept) as model:
                test = mean_nll(model, windows, batch=config.labels.batch)
            results[name] = {"labelling": math.exp(labelling), "test": math.exp(test)}
            OUT.parent.mkdir(parents=True, exist_ok=True)
            OUT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(name, {part: round(value, 2) for part, value in results[name].items()}, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
