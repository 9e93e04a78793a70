"""train: fits a predictor (policy → log-perplexity) to labelled policies, and scores it."""

import math
from pathlib import Path

from lightning import Fabric
from omegaconf import DictConfig

from ppf.artefacts import write_json
from ppf.errors import PPFError
from ppf.labels.context import prepare
from ppf.predictor.base import needs_labels, unfitted
from ppf.predictor.scores import endings
from ppf.progress import say
from ppf.report.publish import publish
from ppf.stages.accuracy import accuracy_page, score
from ppf.stages.collect import collect
from ppf.stages.fit import fitted
from ppf.stages.lineage import log_artifact
from ppf.stages.outcome import Outcome


def check(cfg: DictConfig) -> None:
    """Raises PPFError if there will be nothing to score the predictor on."""
    predictor = unfitted(cfg.predictor)
    if not (cfg.test_policies or needs_labels(predictor) or hasattr(predictor, "held_out")):
        raise PPFError(
            "a predictor without labels has no out-of-fold predictions to score: give"
            " test_policies=256, which labels further policies for the scores."
        )


def main(cfg: DictConfig, fabric: Fabric) -> Outcome:
    """Labels policies, fits the predictor, scores it and plots predicted against measured."""
    context = prepare(cfg, fabric)
    labels = collect(cfg, context)
    trained = fitted(cfg, fabric, context, None, labels)
    held_out, metrics = (
        score(cfg, context, trained, labels)
        if cfg.test_policies
        else (trained.predictor.held_out, trained.predictor.metrics)
    )
    metric = metrics.get("test/nmse")
    if not fabric.is_global_zero:
        return Outcome(metric)
    row = {name.removeprefix("test/"): value for name, value in metrics.items()}
    row = {"nmse": row.pop("nmse", math.nan), **row, "labels": len(labels)}  # sweeps rank by nmse
    folder = Path(cfg.paths.run)
    write_json(folder / "scores.json", row)
    page = accuracy_page(row, held_out)
    publish(folder, fabric.loggers, page, metrics)
    if needs_labels(trained.predictor):  # others are not stored
        name = f"{cfg.model.name}-predictor"
        log_artifact(fabric.loggers, [trained.folder], name, "predictor")
        say(f"Predictor: {trained.folder}")
    say(f"Report:    {folder / 'report.html'}\nScores:    {folder / 'scores.json'}")
    bands = [ending for _, ending in endings()]
    brief = {
        name: value
        for name, value in row.items()
        if name.startswith(("equal_ratio", "coverage")) or not any(end in name for end in bands)
    }
    return Outcome(metric, [brief])
