"""Predictors × numbers of labels, on policies drawn at random and on proposals of searches.

    python experiments/predictor/run.py [--predictors additive,cnn] [--labels 128,256] [OVERRIDES]

Both held-out sets are labelled once and shared by all rows. The random one comes from the sampler
under another seed; for rows of at most 1024 labels, the labels after those belong to it too. The
proposals are what an evolution finds, at ratios and seeds of its own, on predictors that were
fitted to the first labels: no predictor of the table was trained on them.
Labels and predictors are found again by their signatures, and rows that results.json has are
skipped. The folder `labels` holds labels in float32, so that no machine needs to make them again;
its proposals are the table's as well, and `--export` adds all that this one has made. Whatever
`--labels` says, all 2048 are there first, since they belong to the random set: elsewhere than in
float32, labels.count= makes fewer.
With labels.acquired=N, each row's labels are joined by N that a predictor of them asks for.
`sensitivity` needs no labels: it is the sum of what each cut alone should cost.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from hydra.utils import instantiate
from lightning import Fabric
from omegaconf import DictConfig
from pyarrow import parquet
from setting import configured
from torch import Tensor

from ppf.agents import Run
from ppf.labels.collect import draw, label
from ppf.labels.table import ACQUIRED, Labels
from ppf.policy_search import run_search
from ppf.predictor.module import PredictorModule
from ppf.predictor.protocol import Prediction
from ppf.predictor.scores import Scores
from ppf.progress import say
from ppf.stages.acquire import acquire
from ppf.stages.collect import collect, label_store
from ppf.stages.prepare import PruningContext, prepare
from ppf.stages.search_inputs import SearchInputs
from ppf.stages.train import train

FILE = Path(__file__).with_name("results.json")
LABELLED = Path(__file__).with_name("labels")
PREDICTORS = ("residual", "additive", "ridge", "mlp", "cnn", "transformer")
LABELS = (128, 256, 512, 1024, 2048)
RANDOM = 256  # policies of the random set under another seed
HELD_OUT = 1024  # labels after which the others belong to the random set too
RATIOS = (0.06, 0.1, 0.14, 0.18, 0.22, 0.27, 0.33, 0.37, 0.42, 0.47, 0.52, 0.57)  # of the proposals
SEEDS = (101,)
EACH = 4  # proposals of a ratio and seed
FITTED_TO = 256  # labels of the predictor whose proposals they are
ACQUIRED_AFTER = 512  # labels of the predictor that asked for what the folder has
SCORES = ("kendall", "spearman", "mae", "median", "nmse", "coverage", "regret")
FIRST_SEED = 1  # of the random set
PROPOSALS = "proposals"
KEY = ("predictor", "labels", "acquired", "set")


def take_over(context: PruningContext) -> Path:
    """Where labels of this form are kept; puts those that are there where collect finds them."""
    labelled = LABELLED / f"{context.signatures.labels}.parquet"
    if labelled.is_file():
        shutil.copy(labelled, label_store(context).folder)
    return labelled


def random_set(cfg: DictConfig, context: PruningContext, labels: Labels) -> Labels:
    """Policies of the sampler; what a predictor was trained on does not count for it (`unseen`)."""
    kept = draw(context, instantiate(cfg.sampler), RANDOM, cfg.seed + FIRST_SEED)
    other = label(label_store(context), context.labeller, kept, "random set")
    return other.with_rows(labels.kept[HELD_OUT:], labels.nll[HELD_OUT:], "sampler")


def exported(labelled: Path, source: str) -> Tensor:
    """The policies of this source that `labelled` has, [rows, sites]; there may be none."""
    if not labelled.is_file():
        return torch.empty(0, 0)
    table = parquet.read_table(labelled, filters=[("source", "=", source)])
    return torch.tensor(table["kept"].to_pylist())


def proposals(cfg: DictConfig, context: PruningContext, labels: Labels, labelled: Path) -> Labels:
    """What searches propose at ratios and seeds of their own, or did when `labelled` was made."""
    if len(before := exported(labelled, PROPOSALS)):
        return label(label_store(context), context.labeller, before, PROPOSALS)
    found = []
    for seed in SEEDS:
        fit = partial(train, context, cfg.predictor, cfg.trainer, seed, ())
        trained, fabric = fit(first(labels, FITTED_TO)), Fabric(accelerator="cpu", devices=1)
        inputs = SearchInputs.of(cfg, fabric, context, fit)
        for ratio in RATIOS:
            objective = inputs.objective(trained, cfg.search.trust_region, ratio, ratio)
            run = Run(fabric, lambda *_: None, seed)
            best = run_search(inputs.agent, objective, run, EACH)
            found.append(best.kept.cpu())
    kept = torch.cat(found).unique(dim=0)
    return label(label_store(context), context.labeller, kept, PROPOSALS)


def with_asked(cfg: DictConfig, context: PruningContext, labels: Labels, labelled: Path) -> Labels:
    """The labels, and as many as `labels.acquired` says: of what their predictor asks for now.

    Those of the first labels that `labelled` tells of: what it asked for when that was made.
    """
    before = exported(labelled, ACQUIRED)
    if len(labels) == ACQUIRED_AFTER and len(before) == cfg.labels.acquired > 0:
        measured = label(label_store(context), context.labeller, before, ACQUIRED)
        return labels.with_rows(before, measured.nll, ACQUIRED)
    fit = partial(train, context, cfg.predictor, cfg.trainer, cfg.seed, ())
    return acquire(context, labels, fit, cfg.labels, cfg.sampler, cfg.seed)


def first(labels: Labels, count: int) -> Labels:
    """The first rows, the dense policy's among them."""
    return Labels(labels.kept[:count], labels.nll[:count], labels.source[:count])


def unseen(held_out: Labels, labels: Labels) -> Labels:
    """The rows that are finite and not among the labels."""
    known = set(map(tuple, labels.kept.tolist()))
    rows = [
        i
        for i, (kept, nll) in enumerate(zip(held_out.kept.tolist(), held_out.nll, strict=True))
        if tuple(kept) not in known and nll.isfinite()
    ]
    return Labels(held_out.kept[rows], held_out.nll[rows], [held_out.source[i] for i in rows])


class Sensitivity:
    """The expected losses of all cuts alone, added up."""

    def __init__(self, context: PruningContext, dense_nll: float) -> None:
        self.losses, self.dense_nll = context.features.losses, dense_nll

    def predict(self, kept: Tensor) -> Prediction:
        excess = self.losses[torch.arange(kept.shape[1]), kept].sum(1)
        return Prediction(self.dense_nll + excess, torch.full_like(excess, torch.nan))


def scored(
    bands: list[float],
    predictor: PredictorModule | Sensitivity,
    context: PruningContext,
    held_out: Labels,
) -> Iterator[dict[str, object]]:
    """One row for all policies, and one for each ratio band."""
    scores = Scores(bands, predictor.dense_nll)
    ratio = context.space.ratio(held_out.kept)
    scores.update(predictor.predict(held_out.kept), held_out.nll.float(), ratio.float())
    values = {name: round(float(value), 5) for name, value in scores.compute().items()}
    edges = [f"{low * 100:.0f}_{high * 100:.0f}" for low, high in pairwise(bands)]
    for band in ("all", *edges):
        suffix = "" if band == "all" else f"_{band}"
        yield {"band": band, **{name: values.get(name + suffix) for name in SCORES}}


def rows_of(
    name: str, cfg: DictConfig, context: PruningContext, labels: Labels, sets: dict[str, Labels]
) -> Iterator[dict[str, object]]:
    """All rows of one predictor and number of labels."""
    predictor = train(context, cfg.predictor, cfg.trainer, cfg.seed, (), labels).predictor
    for held_out, policies in sets.items():
        for row in scored(cfg.predictor.bands, predictor, context, unseen(policies, labels)):
            yield {"predictor": name, **numbers(labels), "set": held_out, **row}


def numbers(labels: Labels) -> dict[str, int]:
    """How many labels there are, and how many of them a predictor asked for."""
    return {"labels": len(labels), "acquired": int(labels.acquired.sum())}


def unlabelled(
    bands: list[float], context: PruningContext, dense_nll: float, sets: dict[str, Labels]
) -> Iterator[dict[str, object]]:
    """All rows of the sensitivities; they have no intervals."""
    for held_out, policies in sets.items():
        for row in scored(bands, Sensitivity(context, dense_nll), context, policies):
            named = {"predictor": "sensitivity", "labels": 0, "acquired": 0, "set": held_out}
            yield named | row | {"coverage": None}


def table(rows: list[dict]) -> str:
    """Markdown: over all bands, and the worst band's Kendall."""
    columns = ("predictor", "labels", "acquired", "set", "Kendall", "worst band", "median")
    columns += ("nmse", "90 % intervals cover")
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for row in (r for r in rows if r["band"] == "all"):
        key = [row[k] for k in KEY]
        same = [r for r in rows if [r[k] for k in KEY] == key]
        worst = min(r["kendall"] for r in same if r["kendall"] is not None)
        cells = [row["kendall"], worst, row["median"], row["nmse"], row["coverage"]]
        shown = ["" if cell is None else f"{cell:.4f}" for cell in cells]
        lines.append("| " + " | ".join([*map(str, key), *shown]) + " |")
    return "\n".join(lines)


def main() -> None:
    """Scores what is missing, writes results.json after each predictor and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--predictors", default=",".join(PREDICTORS))
    parser.add_argument("--labels", default=",".join(map(str, LABELS)))
    parser.add_argument("--results", type=Path, default=FILE)
    parser.add_argument("--export", action="store_true", help="write all labels into `labels`")
    options, overrides = parser.parse_known_args()
    counts = [int(count) for count in options.labels.split(",")]

    given = (f"labels.count={max(LABELS)}", "agent=evolution", "model.dtype=float32", *overrides)
    cfg = configured(*given)
    context = prepare(cfg, Fabric(accelerator="cpu", devices=1))
    labelled = take_over(context)
    labels = collect(context, cfg.sampler, cfg.labels.count, cfg.seed)
    sets = {
        "random": random_set(cfg, context, labels),
        "proposals": proposals(cfg, context, labels, labelled),
    }
    if options.export:
        LABELLED.mkdir(exist_ok=True)
        label_store(context).export(labelled)

    rows = json.loads(options.results.read_text()) if options.results.is_file() else []
    done = {tuple(row[k] for k in KEY[:3]) for row in rows}
    if ("sensitivity", 0, 0) not in done:
        rows += unlabelled(cfg.predictor.bands, context, float(labels.nll[0]), sets)
    for name in options.predictors.split(","):
        chosen = configured(f"predictor={name}", *given)
        for count in counts:
            drawn, asked = first(labels, count), cfg.labels.acquired
            key = (name, len(drawn) + asked, asked)
            if key in done:
                continue
            some = with_asked(chosen, context, drawn, labelled)
            say(f"{name} on {len(some)} labels.")
            rows += rows_of(name, chosen, context, some, sets)
            done.add(key)
            options.results.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
