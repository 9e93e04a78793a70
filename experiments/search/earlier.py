"""Measures policies that an earlier version found, and those of given files, on the same text.

    python experiments/search/earlier.py [--sequential] [POLICY.json ...]

Version 482b420 regularised the compensation towards zero, and found its policies with labels of
random policies; this repository's history has them. All policies are measured with the present
order and one-shot compensation: on the labelling part, and on the 32 of the 128 windows of the test
part that 482b420 reported. With --sequential, they are measured on the test windows with sequential
compensation too, if that is better on the selection part. All measurements are artefacts, so a
killed run resumes. The results are written to outputs/experiments/search/earlier.json.
"""

import argparse
import json
import math
import subprocess
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
from ppf.stages.prune import pruned_to

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


def tested(
    config: DictConfig, context: PruningContext, kept: list[int], refit: int | None
) -> float:
    """The loss on the test windows, nats per token.

    Args:
        refit: number of windows that sequential compensation reads; None: one-shot compensation.
    """

    def make(draft: Path) -> None:
        windows = evenly(context.text.tokens("test", context.model.lm.tokenizer), WINDOWS)
        parts = context.labelling, context.calibration
        with pruned_to(*parts, kept, sequential=refit is not None, windows=refit) as model:
            draft.write_text(json.dumps(mean_nll(model, windows, batch=config.labels.batch)))

    given = context.signatures.labels, text_identity(config, "test"), WINDOWS, kept, refit
    file = context.artefacts.folder / "tested" / f"{signature('tested', *given)}.json"
    return get_or_make(file, read=lambda path: float(json.loads(path.read_text())), make=make)


def main() -> None:
    """Measures all policies and prints their perplexities."""
    parser = argparse.ArgumentParser(description="Measures earlier policies and given ones.")
    parser.add_argument("files", nargs="*", metavar="POLICY.json")
    parser.add_argument("--sequential", action="store_true", help="also sequential compensation")
    asked = parser.parse_args()
    with initialize_config_module("ppf.conf", version_base="1.3"):
        config = compose("search", ["logger=none", "paths.run=."])
    context = prepare(config, Fabric(accelerator="cpu", devices=1))
    policies = earlier()
    for file in asked.files:
        kept = read_policy(file, [])["kept"]
        policies[file] = [kept[site.name] for site in context.model.space.sites]
    results = {}
    for name, kept in policies.items():
        labelling = float(context.labelling.measure(torch.tensor([kept]), "earlier").nll[0])
        losses = {"labelling": labelling, "test": tested(config, context, kept, None)}
        if asked.sequential:
            losses["test, sequential"] = tested(config, context, kept, config.refit_windows)
        results[name] = {part: round(math.exp(nll), 4) for part, nll in losses.items()}
        print(name, results[name], flush=True)
    write_json(OUT, results)


if __name__ == "__main__":
    main()
