"""Measures policies that an earlier version found, and those of given files, on the same text.

    python experiments/search/earlier.py [POLICY.json ...]

Version 482b420 regularised the compensation towards zero, and found its policies with labels of
random policies; this repository's history has them. All policies are measured with the present
order and one-shot compensation: on the labelling part, and on the 32 of the 128 windows of the test
part that 482b420 reported. All measurements are artefacts, so a killed run resumes. The results are
written to outputs/experiments/search/earlier.json.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import torch
from hydra import compose, initialize_config_module
from lightning import Fabric
from omegaconf import DictConfig

from ppf.artefacts import get_or_make, signature, write_json
from ppf.context.policy import read_policy
from ppf.context.prepare import PruningContext, prepare
from ppf.context.signatures import text_identity
from ppf.evaluation.perplexity import mean_nll
from ppf.llm.windows import evenly

OUT = Path("outputs/experiments/search/earlier.json")
SOURCE = "482b420:experiments/search/"
FILES = {"evolution, 182 evaluations": "equal.json", "dynamic, 1037 evaluations": "results.json"}
RATIOS, WINDOWS = (0.2, 0.3, 0.4, 0.5), 32


def earlier() -> dict[str, list[int]]:
    """The policies of 482b420: for each name and ratio, the units that each site keeps."""
    found = {}
    for name, file in FILES.items():
        text = subprocess.run(["git", "show", SOURCE + file], stdout=subprocess.PIPE, check=True)
        for row in json.loads(text.stdout):
            if row["agent"] == name.split(",")[0] and row["seed"] == 0 and row["ratio"] in RATIOS:
                found[f"{name}, {row['ratio']}"] = row["kept"]
    return found


def tested(config: DictConfig, context: PruningContext, kept: list[int]) -> float:
    """The loss on the test windows, nats per token."""

    def make(draft: Path) -> None:
        windows = evenly(context.text.tokens("test", context.model.lm.tokenizer), WINDOWS)
        with context.model.at(kept) as model:
            draft.write_text(json.dumps(mean_nll(model, windows, batch=config.labels.batch)))

    given = context.signatures.labels, text_identity(config, "test"), WINDOWS, kept
    file = context.artefacts.folder / "tested" / f"{signature('tested', *given)}.json"
    return get_or_make(file, read=lambda path: float(json.loads(path.read_text())), make=make)


def main(files: list[str]) -> None:
    """Measures all policies and prints their perplexities."""
    with initialize_config_module("ppf.conf", version_base="1.3"):
        config = compose("search", ["logger=none", "paths.run=."])
    context = prepare(config, Fabric(accelerator="cpu", devices=1))
    policies = earlier()
    for file in files:
        kept = read_policy(file, [])["kept"]
        policies[file] = [kept[site.name] for site in context.model.space.sites]
    results = {}
    for name, kept in policies.items():
        labelling = float(context.labelling.measure(torch.tensor([kept]), "earlier").nll[0])
        losses = {"labelling": labelling, "test": tested(config, context, kept)}
        results[name] = {part: round(math.exp(nll), 4) for part, nll in losses.items()}
        print(name, results[name], flush=True)
    write_json(OUT, results)


if __name__ == "__main__":
    main(sys.argv[1:])
